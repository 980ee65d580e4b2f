"""Environments of peers that do not fit into ours: pip fills each of them once."""

from __future__ import annotations

import subprocess
import venv
from importlib.metadata import version
from pathlib import Path
from sysconfig import get_path

ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".bench"
REQUIREMENTS = {
    # Transformers 5 has no batch_encode_plus, which RETRO-pytorch calls.
    "retro-pytorch": [
        "retro-pytorch==0.3.9",
        "autofaiss==2.18.0",
        "transformers==4.57.6",
        "numpy==1.26.4",
        "pyarrow==19.0.1",
        "faiss-cpu==1.12.0",
    ],
    "scann": ["scann==1.4.2"],
    "hnswlib": ["hnswlib==0.8.0", "numpy<3"],
    "stores": ["h5py==3.16.0", "datasets==4.8.5", "mosaicml-streaming==0.13.0", "numpy==1.26.4"],
}


def environment(name: str, environments: Path) -> Path:
    """Returns the interpreter of an environment with peers in it, which is made if it is missing.

    After its packages it sees ours, above all torch: a second copy takes several GB, and both sides should
    compute with the same. Pip counts what it sees there as installed.

    Args:
        name: One of REQUIREMENTS.
        environments: Folder of the environments.
    """
    place = environments / name
    python = place / "bin" / "python"
    requirements = [*REQUIREMENTS[name], f"torch=={version('torch')}"]
    wanted = "\n".join([get_path("purelib"), *requirements])
    # Written last: an environment without it was not filled to the end.
    filled = place / "filled.txt"
    if not filled.exists() or filled.read_text("utf-8") != wanted:
        venv.create(place, clear=True, with_pip=True)
        [packages] = place.glob("lib/python*/site-packages")
        (packages / "behind.pth").write_text(get_path("purelib"), "utf-8")
        # Pip also prints complaints about our packages, whose versions stay.
        command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{place}: pip failed: {done.stderr}")
        filled.write_text(wanted, "utf-8")
    return python
