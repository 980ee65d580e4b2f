"""The frozen encoder against transformers, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from retro_db.config import EncoderConfig
from retro_db.encoder import Encoder, batches_of, describe_model
from retro_db.errors import ModelError
from retro_db_pipelines.demo import encoder_folder

TEXTS = ["one", "two words", "", " \n\t", "a longer text, " * 30, "much longer than is read " * 100]


def config(**settings: object) -> EncoderConfig:
    return EncoderConfig.model_validate({"model": str(encoder_folder())} | settings)


@pytest.mark.parametrize("pooling", ["mean", "mean_without_special", "cls"])
def test_keys_equal_transformers_one_text_at_a_time(pooling: str) -> None:
    keys = Encoder(config(pooling=pooling)).encode(TEXTS)
    model = AutoModel.from_pretrained(encoder_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    for text, key in zip(TEXTS, keys, strict=True):
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        if batch["input_ids"].shape[1] == 2:
            assert not key.any()
            continue
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state[0].numpy()
        inner = {"mean": hidden, "mean_without_special": hidden[1:-1], "cls": hidden[:1]}[pooling]
        np.testing.assert_allclose(key, inner.mean(axis=0), atol=1e-4, rtol=1e-4)


def test_threads_and_repeats_give_the_same_bytes() -> None:
    one, two = (Encoder(config(), threads=threads).encode(TEXTS * 20) for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


@given(st.lists(st.integers(1, 90), max_size=60), st.integers(1, 400))
def test_batches_hold_every_row_once_within_the_budget(sizes: list[int], budget: int) -> None:
    lengths = np.array(sorted(sizes), dtype=np.int64)
    rows = np.arange(len(lengths))
    batches = list(batches_of(rows, lengths, budget))
    assert [row for batch in batches for row in batch] == rows.tolist()
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget


def damaged_model(folder: Path, value: float) -> Path:
    """A copy whose last layer's bias holds a value."""
    shutil.copytree(encoder_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layer.5.output.LayerNorm.bias"))
    weights[name] = np.full_like(weights[name], value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_value_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    model = damaged_model(tmp_path / "model", np.nan)
    with pytest.raises(ModelError, match="not finite"):
        Encoder(config(model=str(model))).encode(["text"])


def test_what_a_model_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        describe_model(config(model=str(tmp_path)))
    shutil.copytree(encoder_folder(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors"):
        describe_model(config(model=str(tmp_path / "model")))


def test_the_identity_follows_what_decides_the_keys(tmp_path: Path) -> None:
    plain = describe_model(config())
    assert plain.dimension == 384
    assert plain == describe_model(config())
    other = describe_model(config(model=str(damaged_model(tmp_path / "model", 0.5))))
    assert other.sha256 != plain.sha256
    assert describe_model(config(pooling="cls")) != plain


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_never_replaced_silently() -> None:
    with pytest.raises(ModelError, match="cuda is asked for"):
        describe_model(config(device="cuda"))
