"""Architectures of transformers are embedded right in batches, or refused; a page says which."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.benchmarks import BENCHMARKS
from support.soak import SOAKING


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architectures", BENCHMARKS / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


architectures = _load()
# One of each kind: padded, by equal lengths, an encoder of its own, and refused for several reasons.
FEW = ["RobertaModel", "MobileBertModel", "T5EncoderModel", "T5Model", "DPRQuestionEncoder"]
FEW += ["LxmertModel"]
NO_LAST_STATE = {"CanineModel", "DPRQuestionEncoder", "LxmertModel", "XmodModel"}


@pytest.mark.parametrize("name", architectures.ARCHITECTURES if SOAKING else FEW)
def test_right_or_refused(name: str, tmp_path: Path) -> None:
    outcome = architectures.outcome_of(tmp_path, name)
    assert (outcome.error is None) == (outcome.way == "refused")
    if outcome.error is None:
        assert re.fullmatch(r"encoder\.[^\n]+", outcome.reason)
        assert ("cannot embed a text" in outcome.reason) == (outcome.name in NO_LAST_STATE)
    else:
        assert outcome.error <= 1e-5
    assert architectures.row(outcome) in architectures.PAGE.read_text("utf-8").splitlines()


def test_the_table_has_every_architecture() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", architectures.PAGE.read_text("utf-8"), re.MULTILINE)
    assert listed == list(architectures.ARCHITECTURES)
    assert len(listed) >= 40
