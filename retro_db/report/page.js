"use strict";
// The page can be read without this: it shows the texts of drawings at once, and the chunks of the map.

const bubble = document.createElement("div");
bubble.className = "bubble";
bubble.hidden = true;
bubble.setAttribute("aria-hidden", "true");
document.body.append(bubble);

/** The text of what is pointed at: taken from its title, which the browser would show once more. */
function hintOf(target) {
  const element = target instanceof Element ? target.closest("svg .hint, svg .hint use") : null;
  if (!element) return null;
  const title = element.querySelector(":scope > title");
  if (title) {
    element.dataset.hint = title.textContent;
    title.remove();
  }
  return element.dataset.hint ?? null;
}

function showBubble(event) {
  const text = hintOf(event.target);
  bubble.hidden = !text;
  if (!text) return;
  bubble.textContent = text;
  const width = document.documentElement.clientWidth;
  bubble.style.left = `${Math.max(4, Math.min(event.clientX + 12, width - bubble.offsetWidth - 4))}px`;
  const above = event.clientY - bubble.offsetHeight - 12;
  bubble.style.top = `${above > 4 ? above : event.clientY + 16}px`;
}
document.addEventListener("pointermove", showBubble);
document.addEventListener("pointerdown", showBubble);
document.addEventListener("scroll", () => { bubble.hidden = true; }, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") bubble.hidden = true; });

function make(tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** The map: a click or a search shows a chunk with its neighbors. */
class ChunkMap {
  constructor(section) {
    this.texts = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    this.shown = section.querySelector(".shown");
    this.matches = section.querySelector(".matches");
    this.count = section.querySelector(".count");
    this.points = new Map();
    for (const point of section.querySelectorAll("svg [data-chunk]")) {
      this.points.set(point.dataset.chunk, point);
    }
    const search = section.querySelector("input");
    search.addEventListener("input", () => this.search(search.value.trim().toLowerCase()));
    section.querySelector("svg").addEventListener("click", (event) => {
      const point = event.target.closest("[data-chunk]");
      if (point) this.show(point.dataset.chunk);
    });
    section.querySelector(".finder").hidden = false;
  }

  passage(chunk, told) {
    const [name, text] = this.texts.chunks[chunk];
    const passage = make("div", "", "passage");
    const origin = make("p", "", "origin");
    origin.append(make("strong", told), ` chunk ${Number(chunk).toLocaleString("en")} of `);
    origin.append(make("bdi", this.texts.names[name]));
    const words = make("p", text);
    words.dir = "auto";
    words.lang = "";
    passage.append(origin, words);
    return passage;
  }

  button(chunk, text) {
    const button = make("button", text);
    button.type = "button";
    button.addEventListener("click", () => this.show(chunk));
    return button;
  }

  show(chunk) {
    for (const point of this.points.values()) point.classList.remove("picked");
    const picked = this.points.get(chunk);
    picked.classList.add("picked");
    picked.parentNode.append(picked); // above the others
    const near = make("div", "", "near");
    this.texts.near[chunk].forEach(([neighbor, distance], rank) => {
      const passage = this.passage(neighbor, `Neighbor ${rank + 1}, distance ${distance}:`);
      if (this.points.has(String(neighbor))) {
        passage.append(this.button(String(neighbor), `Show chunk ${neighbor} and its neighbors`));
      }
      near.append(passage);
    });
    if (!near.hasChildNodes()) near.append(make("p", "It has no neighbor."));
    this.shown.replaceChildren(this.passage(chunk, "Chunk:"), near);
  }

  search(words) {
    const matches = [];
    for (const [chunk, point] of this.points) {
      const [name, text] = this.texts.chunks[chunk];
      const all = `${text} ${this.texts.names[name]}`.toLowerCase();
      const matching = words !== "" && all.includes(words);
      point.classList.toggle("match", matching);
      point.classList.toggle("other", words !== "" && !matching);
      if (matching) matches.push(chunk);
    }
    this.count.textContent = words === "" ? "" : `${matches.length} of ${this.points.size} chunks match.`;
    this.matches.replaceChildren(...matches.slice(0, 20).map((chunk) => {
      const item = document.createElement("li");
      const text = this.texts.chunks[chunk][1];
      const start = Math.max(0, text.toLowerCase().indexOf(words) - 30);
      item.append(this.button(chunk, `${start ? "…" : ""}${text.slice(start, start + 90)}`));
      return item;
    }));
  }
}
document.querySelectorAll(".map").forEach((section) => new ChunkMap(section));
