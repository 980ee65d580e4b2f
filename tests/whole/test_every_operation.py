"""Whatever operation on the disk fails, or is a command's last, the same command ends in the right bytes.

A few of the operations for every change; all of them in a long run, and by `make faults`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from support.faults import KINDS, Harness, compiled, plans
from support.soak import SOAKING

COMMANDS = ("build", "build again, otherwise", "append", "remove", "compact", "export")
# Operations of a command that are hit in a short run.
FEW = {"kill": 3, "short write": 1, "EIO": 1, "ENOSPC": 1}


@pytest.fixture(scope="module")
def harness_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Harness]:
    folder = tmp_path_factory.mktemp("faults")
    library = compiled(folder)
    by_name = {plan.name: plan for plan in plans(folder / "plans")}
    assert set(by_name) == set(COMMANDS)
    return functools.cache(
        lambda name: Harness(by_name[name], library, folder / name.replace(" ", "-"))
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_fault_at_any_operation_is_the_end(
    harness_of: Callable[[str], Harness], command: str, kind: str
) -> None:
    harness = harness_of(command)
    hit = [
        number
        for number, operation in enumerate(harness.operations, 1)
        if kind != "short write" or operation.startswith("write ")
    ]
    assert len(hit) >= 3
    # Others for each kind and command, the same each time.
    step = 1 if SOAKING else -(-len(hit) // FEW[kind])
    first = (7 * COMMANDS.index(command) + 3 * list(KINDS).index(kind)) % step
    tally = harness.try_all(kind, hit[first::step])
    assert tally.tried
    assert not tally.broken, "\n".join(tally.broken)
