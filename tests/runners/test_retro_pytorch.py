"""The benchmark beside RETRO-pytorch's whole build, which pip installs into an environment of its own."""

from __future__ import annotations

from pathlib import Path

from support.benchmarks import printed_by
from support.texts import wikitext


def test_whole_build(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("".join(wikitext("valid.txt")[:4]), "utf-8")
    # Its environment stays in the checkout for the next time.
    printed = printed_by("whole_build.py", "--rounds=1", f"--texts={texts}", folder=tmp_path)
    assert "whole build beside RETRO-pytorch, times as fast: " in printed
    assert "recall@10 of retro-db against exact search over other documents: " in printed
    assert "RETRO-pytorch's chunks of nothing but [CLS], [SEP] and padding: " in printed
    assert "after one item is read" in printed
