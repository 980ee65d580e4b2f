"""The frozen encoder against transformers, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
    T5Config,
    T5Model,
)

from retro_db.encoder.batching import batches_of
from retro_db.encoder.budget import try_budget
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import describe_model, model_sha256
from retro_db.errors import ModelError
from retro_db.meter import Meter
from retro_db.threads import use_faiss_threads, use_torch_threads
from retro_db_pipelines.commands.demo import encoder_folder
from support.encoders import config, open_encoder, random_model, texts_of
from support.places import TESTS
from support.soak import amount

TEXTS = ["one", "two words", "", " \n\t", "a longer text, " * 30, "much longer than is read " * 100]


def one_at_a_time(folder: Path, texts: list[str], pooling: str) -> np.ndarray:
    """Keys by transformers alone, in float32; zeros for a text without a WordPiece."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    keys = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for text, key in zip(texts, keys, strict=True):
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        batch.pop("token_type_ids", None)
        if batch["input_ids"].shape[1] == 2:
            continue
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state[0].numpy()
        inner = {"mean": hidden, "mean_without_special": hidden[1:-1], "cls": hidden[:1]}[pooling]
        key[:] = inner.mean(axis=0)
    return keys


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoders of several families with random weights."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vocabulary = AutoTokenizer.from_pretrained(encoder_folder()).vocab_size
    distil = DistilBertConfig(vocab_size=vocabulary, dim=128, n_layers=3, n_heads=4, hidden_dim=256)
    wide = BertConfig(vocab_size=vocabulary, num_hidden_layers=amount(quick=3, soak=12))
    roberta = RobertaConfig(
        vocab_size=400,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=258,
    )
    bytes_and_merges = ByteLevelBPETokenizer()
    bytes_and_merges.train_from_iterator(
        texts_of(range(100)), 400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    bytes_and_merges.save(str(root / "tokenizer.json"))
    RobertaModel(roberta).save_pretrained(root / "roberta")
    RobertaTokenizerFast.from_pretrained(root).save_pretrained(root / "roberta")
    return {
        "minilm": encoder_folder(),
        "bert-base": random_model(root / "bert", BertModel(wide)),
        "distilbert": random_model(root / "distil", DistilBertModel(distil)),
        "roberta": root / "roberta",
    }


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("minilm", range(1, 257, amount(quick=9, soak=1))),
        ("bert-base", range(1, 257, amount(quick=31, soak=5))),
        ("distilbert", range(1, 257)),
        ("roberta", range(1, 257)),
    ],
)
@pytest.mark.parametrize("pooling", ["mean", "mean_without_special", "cls"])
def test_keys_equal_transformers_one_text_at_a_time(
    models: dict[str, Path], name: str, lengths: range, pooling: str
) -> None:
    if name in ("minilm", "bert-base") and pooling != "mean":
        lengths = range(1, 257, 51)
    texts = texts_of(lengths)
    keys = open_encoder(model=str(models[name]), pooling=pooling, normalize=False).encode(texts)
    wanted = one_at_a_time(models[name], texts, pooling)
    assert wanted.any(axis=1).all()
    assert (np.abs(keys - wanted) <= 1e-3 * np.maximum(1, np.abs(wanted))).all()


@pytest.mark.parametrize("name", ["minilm", "distilbert", "roberta"])
def test_bfloat16_points_the_same_way(models: dict[str, Path], name: str) -> None:
    texts = texts_of(range(1, 257, 5))
    keys = open_encoder(model=str(models[name]), dtype="bfloat16", normalize=False).encode(texts)
    wanted = one_at_a_time(models[name], texts, "mean")
    norms = np.linalg.norm(keys, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((keys * wanted).sum(axis=1) / norms > 0.9995).all()


@pytest.mark.parametrize("pooling", ["mean", "mean_without_special", "cls"])
def test_texts_of_any_kind(pooling: str) -> None:
    keys = open_encoder(pooling=pooling, normalize=False).encode(TEXTS)
    wanted = one_at_a_time(encoder_folder(), TEXTS, pooling)
    np.testing.assert_allclose(keys, wanted, atol=1e-4, rtol=1e-4)
    assert not keys[2:4].any()


def test_threads_and_repeats_give_the_same_bytes() -> None:
    one, two = (open_encoder(threads).encode(TEXTS * 20) for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


def test_keys_do_not_depend_on_what_ran_before_in_the_thread() -> None:
    encoders = [open_encoder(threads=1), open_encoder(threads=2)]

    def keys(encoder: Encoder) -> np.ndarray:
        return np.concatenate([encoder.encode([text]) for text in texts_of(range(2, 120))])

    expected = keys(encoders[0])
    use_torch_threads(2)
    use_faiss_threads(1)
    assert np.array_equal(keys(encoders[0]), expected)
    use_torch_threads(1)
    use_faiss_threads(2)
    assert np.array_equal(keys(encoders[1]), expected)


def test_windows_come_in_turn_and_what_is_counted_adds_up() -> None:
    encoder, meter = open_encoder(), Meter()
    windows = [TEXTS, ["", " "], [], texts_of(range(1, 40)), [""]]
    found = list(encoder.encode_windows(map(encoder.tokenize, windows), meter))
    for texts, keys in zip(windows, found, strict=True):
        assert keys.tobytes() == encoder.encode(texts).tobytes()
    work, tokenizer = meter.work, AutoTokenizer.from_pretrained(encoder_folder())
    pieces = [
        tokenizer(t, truncation=True, max_length=256)["input_ids"] for w in windows for t in w
    ]
    assert work.done == len(pieces)
    assert work.counts["tokens"] == sum(len(ids) for ids in pieces if len(ids) > 2)
    # One batch of four texts as wide as the longest, and one of 39.
    assert work.counts["tokens"] + work.counts["padding"] == 4 * 256 + 39 * 41
    assert work.seconds["device"] > 0


@given(st.lists(st.integers(1, 90), max_size=60), st.integers(1, 400))
def test_batches_hold_every_row_once_within_the_budget(sizes: list[int], budget: int) -> None:
    lengths = np.array(sorted(sizes), dtype=np.int64)
    rows = np.arange(len(lengths))
    batches = list(batches_of(rows, lengths, budget))
    assert [row for batch in batches for row in batch] == rows.tolist()
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    for batch, following in pairwise(batches):
        # Another eight rows, or another one where there are fewer, would have been too many.
        assert len(batch) % 8 == 0 or len(batch) < 8
        more = following[: 8 if len(batch) >= 8 else 1]
        assert len(more) < 8 <= len(batch) or lengths[more[-1]] * (len(batch) + len(more)) > budget


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
        open_encoder(model=str(model)).encode(["text"])


def test_what_a_model_needs(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        describe_model(config(model=str(tmp_path)))
    shutil.copytree(encoder_folder(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors"):
        describe_model(config(model=str(tmp_path / "model")))
    t5 = T5Model(T5Config(vocab_size=100, d_model=16, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="has a decoder"):
        describe_model(config(model=str(random_model(tmp_path / "t5", t5))))
    # RoBERTa numbers positions from behind its padding id, 1.
    assert describe_model(config(model=str(models["roberta"]), max_length=256)).dimension == 96
    with pytest.raises(ModelError, match="more than the 256 positions"):
        describe_model(config(model=str(models["roberta"]), max_length=257))


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    """Weights that would run code when they are loaded lie beside safe ones."""
    shutil.copytree(encoder_folder(), tmp_path / "model")
    mark = tmp_path / "ran"
    script = f"cposix\nsystem\n(S'touch {mark}'\ntR."
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(script.encode())
    open_encoder(model=str(tmp_path / "model")).encode(["text"])
    assert not mark.exists()


def test_the_identity_follows_what_decides_the_keys(tmp_path: Path) -> None:
    plain = describe_model(config())
    assert plain.dimension == 384
    assert plain == describe_model(config())
    folder = damaged_model(tmp_path / "model", 0.5)
    other = describe_model(config(model=str(folder)))
    assert other.sha256 != plain.sha256
    assert describe_model(config(pooling="cls")) != plain
    for name in ("tokenizer.json", "added_tokens.json", "spiece.model"):
        before = model_sha256(folder)
        (folder / name).write_bytes(b"{}")
        assert model_sha256(folder) != before
    with pytest.raises(ModelError, match="is not the model of this database"):
        Encoder(folder, plain)


def test_batches_of_a_cpu_stay_in_its_caches() -> None:
    for asked, held in (("auto", 2048), (16_384, 2048), (100, 100)):
        assert describe_model(config(batch_tokens=asked)).batch_tokens == held


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_never_replaced_silently() -> None:
    # Other machines may have one: only who embeds can tell.
    described = describe_model(config(device="cuda", batch_tokens="auto"))
    assert (described.dtype, described.batch_tokens) == ("bfloat16", None)
    with pytest.raises(ModelError, match="cuda is asked for"):
        Encoder(encoder_folder(), described)


SCRIPT = """
import resource, sys
from support.encoders import open_encoder, texts_of
encoder = open_encoder()
encoder.encode(["text"])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))
encoder.encode(texts_of(range(200, 240)))
"""


def test_running_out_of_memory_names_the_field() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, check=False)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("retro_db.errors.DeviceMemoryError: encoder.batch_tokens: a batch of")


def test_a_trial_of_the_budget_runs_its_largest_batches() -> None:
    encoder = open_encoder(max_length=32)
    try_budget(encoder, 256)
    assert encoder.model.batch_tokens == 2048
