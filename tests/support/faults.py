"""One fault at one operation on the disk: commands under it, at one operation after the other.

    python -m support.faults [--every N]

prints how many faults were tried and how many of them left everything in order.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from retro_db.verify import verify_database
from support.encoders import make_tiny
from support.places import SUPPORT
from support.processes import Command
from support.projects import Project, make_project, remove_documents

# What the shim takes, by what it is called here.
KINDS = {
    "kill": "kill",
    "short write": "short",
    "EIO": str(errno.EIO),
    "ENOSPC": str(errno.ENOSPC),
}
_SECONDS = 240
_SUBJECTS = ("whales", "iron", "bread", "rain", "glass", "owls")


def compiled(folder: Path) -> Path:
    """The shim; see its source."""
    library = folder / "faults.so"
    source = SUPPORT / "faults.c"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True)
class Plan:
    """A command under test.

    Attributes:
        name: Name of it.
        start: Folder whose copy it works in.
        arguments: The command, for the folder that it works in.
        made: Name of what it makes or changes there; that is compared.
        kept: Name of what it must not change; empty if there is nothing.
    """

    name: str
    start: Path
    arguments: Callable[[Path], Sequence[str]]
    made: str = "db"
    kept: str = ""


@dataclass
class Tally:
    """What was tried, and what did not hold."""

    tried: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.tried - len(self.broken):,} of {self.tried:,}"


def plans(folder: Path) -> list[Plan]:
    """All of them, and what they start from."""
    folder.mkdir()
    project = _project(folder)
    nothing, finished, removed = (folder / name for name in ("nothing", "finished", "removed"))
    nothing.mkdir()
    settings = project.settings | {"output": str(finished / "db")}
    assert Project(folder, project.texts, settings).build() == 0
    shutil.copytree(finished, removed)
    assert remove_documents(removed / "db", ["doc-1", "doc-3"]) == 0
    more, listed = folder / "more.jsonl", folder / "listed.txt"
    more.write_bytes(orjson.dumps({"id": "more", "text": "Something about wool. " * 40}) + b"\n")
    listed.write_text("doc-1\ndoc-3\n")
    config = str(project.config)

    def building(*options: str) -> Callable[[Path], Sequence[str]]:
        return lambda work: ["build", config, "--set", f"output={work / 'db'}", *options]

    return [
        Plan("build", nothing, building()),
        Plan("build again, otherwise", finished, building("--set", "neighbors.k=2")),
        Plan("append", finished, building("--append", "--set", f"corpus.0.paths=[{more}]")),
        Plan(
            "remove",
            finished,
            lambda work: ["remove", str(work / "db"), "--documents", str(listed)],
        ),
        Plan(
            "compact",
            removed,
            lambda work: ["compact", str(work / "db"), str(work / "new")],
            made="new",
            kept="db",
        ),
        Plan(
            "export",
            finished,
            lambda work: [
                *("export", str(work / "db"), str(work / "out"), "--to", "megatron"),
                *("--seq-len", "64", "--batch-size", "2", "--eval-interval", "2"),
                *("--eval-iters", "0"),
            ],
            made="out",
            kept="db",
        ),
    ]


def _project(folder: Path) -> Project:
    """Some documents of which one is left out, and a query corpus."""
    (folder / "asked.txt").write_text("whales and owls " * 30)
    texts = [f"A text about {word}. " * (20 + 9 * i) for i, word in enumerate(_SUBJECTS)]
    project = make_project(
        folder,
        [*texts, texts[0]],
        tokenizer={"train": {"vocab_size": 300}},
        neighbors={"k": 4},
        dedup={"jaccard": 0.8},
        queries=[{"name": "asked", "paths": [str(folder / "asked.txt")]}],
    )
    project.settings["encoder"]["max_length"] = 16
    return project


def content(folder: Path) -> dict[str, bytes]:
    """Every file that equal commands must leave with equal bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"report", "state"} & set(path.relative_to(folder).parts)
    }


class Harness:
    """Runs a plan under faults.

    Args:
        plan: The plan.
        library: The shim.
        folder: New folder to work in.

    Attributes:
        operations: What the command does to the disk, in order, such as `rename /.../manifest.json`.
    """

    def __init__(self, plan: Plan, library: Path, folder: Path) -> None:
        self._plan = plan
        self._library = str(library)
        self._work = folder
        log = folder.with_suffix(".log")
        log.touch()
        self._begin()
        code, message = self._run(FAULT_BELOW=str(folder), FAULT_LOG=str(log))
        assert code == 0, message
        self.operations = log.read_text().splitlines()
        self._wanted = content(folder / plan.made)

    def try_all(self, kind: str, numbers: Iterable[int]) -> Tally:
        """Hits one operation after another.

        Args:
            kind: One of `KINDS`.
            numbers: Operations, from 1; a kind that cannot hit one passes it over.
        """
        tally = Tally()
        for number in numbers:
            operation = self.operations[number - 1]
            if kind == "short write" and not operation.startswith("write "):
                continue
            tally.tried += 1
            if problem := self._try(kind, number):
                where = operation.replace(str(self._work), "")
                tally.broken.append(f"{self._plan.name}, {kind} at {number} ({where}): {problem}")
        return tally

    def _try(self, kind: str, number: int) -> str | None:
        """What is not in order after one fault."""
        self._begin()
        faults = {
            "FAULT_BELOW": str(self._work),
            "FAULT_AT": str(number),
            "FAULT_KIND": KINDS[kind],
        }
        code, message = self._run(**faults)
        if problem := _expected(kind, code, message):
            return problem
        for place in {self._plan.made, self._plan.kept} - {""}:
            if problem := _unsound(self._work / place):
                return f"not sound before it goes on: {problem}"
        if code:
            code, message = self._run()
        if code:
            return f"the same command ends with {code}: {message}"
        return self._difference()

    def _begin(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._plan.start, self._work)

    def _run(self, **faults: str) -> tuple[int, str]:
        arguments = self._plan.arguments(self._work)
        with Command(*arguments, preloaded=self._library, **faults) as command:
            _, message = command.communicate(timeout=_SECONDS)
            return command.wait(), message

    def _difference(self) -> str | None:
        made = content(self._work / self._plan.made)
        if differing := {p for p in {*made, *self._wanted} if made.get(p) != self._wanted.get(p)}:
            return f"other bytes in the end: {min(differing)}"
        if self._plan.kept:
            start = self._plan.start / self._plan.kept
            if content(self._work / self._plan.kept) != content(start):
                return f"{self._plan.kept} was changed"
        return None


def _unsound(folder: Path) -> str | None:
    """What is wrong with a folder that calls itself a database."""
    if not (folder / "manifest.json").exists():
        return None
    return next(iter(verify_database(str(folder)).problems), None)


def _expected(kind: str, code: int, message: str) -> str | None:
    """What is wrong with the end of a command that met a fault."""
    if kind == "kill":
        return None if code == -9 else f"ended with {code} in place of being killed"
    if kind == "short write":
        return f"ended with {code}: {message}" if code else None
    # An error of what is not needed may be passed over.
    is_one_line = message.startswith("error: ") and message.count("\n") == 1
    if code in (2, 3) and is_one_line and "Traceback" not in message:
        return None
    return None if code == 0 else f"ended with {code}: {message}"


def tally_all(commands: Sequence[str], kinds: Sequence[str], every: int) -> list[str]:
    """Tries the faults and prints a table; what did not hold."""
    broken = []
    head = ["command", "operations", *kinds]
    rows = [head, ["---"] * len(head)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny(folder / "tiny-encoder")
        library = compiled(folder)
        for number, plan in enumerate(plans(folder / "plans")):
            if commands and plan.name not in commands:
                continue
            harness = Harness(plan, library, folder / f"work-{number}")
            numbers = range(1, len(harness.operations) + 1, every)
            tallies = [harness.try_all(kind, numbers) for kind in kinds]
            rows.append([plan.name, f"{len(harness.operations):,}", *map(str, tallies)])
            broken += [line for tally in tallies for line in tally.broken]
    print("Faults that were tried, and after how many everything was in order:\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print("\n".join(broken))
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="hit each N-th operation")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="all, if left out")
    parser.add_argument("--command", action="append", help="by name; all, if left out")
    options = parser.parse_args()
    broken = tally_all(options.command or [], options.kind or list(KINDS), options.every)
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
