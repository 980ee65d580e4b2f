"""Owners of a folder: the living are not taken for dead."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from retro_db.store.fence import Owner, this_process

_HIDDEN = """
import os, sys
from retro_db.store.fence import Owner, this_machine
owner = Owner("token", "host", this_machine(), int(sys.argv[1]), sys.argv[2])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
assert not os.path.exists(f"/proc/{owner.pid}"), "it is not hidden"
print(owner.is_gone)
"""


def test_a_driver_whose_process_is_hidden_is_not_gone() -> None:
    """Where /proc is mounted so that users do not see each other's processes."""
    owner = this_process()
    program = [sys.executable, "-c", _HIDDEN, str(owner.pid), owner.born]
    command = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "sh", *program],
        capture_output=True,
        text=True,
    )
    if "mount" in done.stderr and "Traceback" not in done.stderr:
        assert "CI" not in os.environ, done.stderr
        pytest.skip(f"/proc cannot be mounted here: {done.stderr}")
    assert done.stdout == "False\n", done.stderr


def test_a_dead_driver_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    owner = this_process()
    assert not owner.is_gone
    assert Owner("token", owner.host, owner.machine, process.pid, owner.born).is_gone
    assert not Owner("token", owner.host, "another machine", process.pid, owner.born).is_gone
