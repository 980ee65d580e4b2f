// Prints what axe-core finds wrong in pages, as JSON, and tries the scripts of each.
// Colors are compared in tests/report/test_report.py: jsdom draws nothing.
const fs = require("fs");
const { JSDOM } = require("jsdom");

const standards = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

async function check(path) {
  const { window } = new JSDOM(fs.readFileSync(path, "utf8"), { runScripts: "dangerously", pretendToBeVisual: true });
  const { document, Event, MouseEvent } = window;
  const click = new MouseEvent("click", { bubbles: true });
  document.querySelector("svg [data-chunk]").dispatchEvent(click);
  const clicked = document.querySelector(".shown").textContent;
  const search = document.querySelector(".finder input");
  search.value = "IMPORT";
  search.dispatchEvent(new Event("input"));
  const matches = document.querySelectorAll(".matches button").length;
  for (const details of document.querySelectorAll("details")) details.open = true;
  window.eval(fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const options = { runOnly: standards, rules: { "color-contrast": { enabled: false } } };
  const { passes, violations } = await window.axe.run(document, options);
  const wrong = violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
  return { clicked, matches, passes: passes.length, wrong };
}

Promise.all(process.argv.slice(2).map(check)).then((checked) => console.log(JSON.stringify(checked)));
