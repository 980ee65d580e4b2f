"""The versions of constraints.txt."""

from __future__ import annotations

from packaging.requirements import Requirement

from support.places import ROOT


def pins() -> dict[str, str]:
    """Version of each package that this Python gets, by its name in lower case."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    wanted = [Requirement(line) for line in lines]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in wanted
        if pin.marker is None or pin.marker.evaluate()
    }
