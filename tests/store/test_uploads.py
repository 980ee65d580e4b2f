"""Files that wait for their upload: nobody else can write them, and only the dead lose theirs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retro_db.store.uploads import spool, sweep_spools


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that others write to, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def spool_of_another(shared: Path) -> Path:
    """What a process leaves that has ended."""
    program = "from retro_db.store.uploads import spool; print(spool())"
    environment = os.environ | {"TMPDIR": str(shared)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip())


def test_a_spool_is_this_users_alone_and_its_name_cannot_be_foreseen(shared: Path) -> None:
    folder = spool()
    assert spool() == folder
    status = folder.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.geteuid()
    shutil.rmtree(folder)
    assert spool() != folder, "the same process has another name the next time"


def test_a_fork_has_its_own(shared: Path) -> None:
    ours = spool()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(spool()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert Path(os.read(read, 4096).decode()) != ours


def test_only_spools_of_this_users_dead_processes_are_swept(shared: Path) -> None:
    ours, dead = spool(), spool_of_another(shared)
    machine = dead.name.rsplit("-", 2)[0]
    elsewhere = dead.with_name(dead.name.replace(machine, machine[:-16] + 16 * "0"))
    elsewhere.mkdir()
    foreign = spool_of_another(shared)
    os.chown(foreign, 65534, -1)
    link = foreign.with_name(f"{foreign.name}x")
    (shared / "target").mkdir()
    link.symlink_to(shared / "target")
    sweep_spools()
    assert not dead.exists()
    assert ours.exists()
    assert elsewhere.exists(), "of another container, in which the number may live"
    assert foreign.exists()
    assert (shared / "target").exists()
