"""Tokenizers: trained, loaded and converted; long texts in segments; text given back exactly."""

from __future__ import annotations

import io
import json
import pickle
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from retro_db.config import TrainTokenizerConfig
from retro_db.errors import ModelError
from retro_db.tokens.segments import SEGMENT, is_cut_before_spaces, segments
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.tokens.tokenizer_training import train_tokenizer
from support.memory import ENVIRONMENT
from support.projects import make_project
from support.soak import amount
from support.texts import python_sources

TEXTS = python_sources(12)
# The pattern of GPT-4 and, but for the digits, of Llama 3 and Qwen.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)


def trained(model: str = "bpe", size: int = 500) -> Tokenizer:
    return train_tokenizer(TEXTS, TrainTokenizerConfig(model=model, vocab_size=size))


def with_pre_tokenizer(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    rust = RustTokenizer.from_str(trained().definition)
    rust.pre_tokenizer = pre_tokenizer
    if normalizer:
        rust.normalizer = normalizer
    return Tokenizer(rust.to_str(), {})


def gpt4() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return with_pre_tokenizer(pre_tokenizers.Sequence([split, byte_level]))


def encode_whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """By the library alone, at once."""
    rust = RustTokenizer.from_str(tokenizer.definition)
    rust.encode_special_tokens = True
    return rust.encode(text, add_special_tokens=False).ids


def long_text(size: int) -> str:
    """Words, code, digits, all kinds of white space and scripts; longer than several segments."""
    source = random.Random(3)
    odd = ["🐘", "1234567", "it's", "  ", "\n\n ", "\t", "\u00a0", "שלום", "'", "e\u0301", "\r\n"]
    words = [word for text in TEXTS for word in text.split(" ")] + odd * 50
    return " ".join(source.choices(words, k=size // 4))[:size]


@pytest.mark.parametrize("model", ["bpe", "unigram"])
@given(text=st.text(max_size=300))
@settings(max_examples=50, deadline=None)
def test_trained_tokenizers_give_any_text_back(model: str, text: str) -> None:
    tokenizer = _TRAINED.setdefault(model, trained(model))
    assert tokenizer.decode(tokenizer.encode([text])) == [text]


_TRAINED: dict[str, Tokenizer] = {}


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_odd_texts_survive_the_round_trip(model: str) -> None:
    tokenizer = trained(model)
    texts = ["\x00\x01 \x7f", "שלום \u202e مرحبا", "x" * 100_000, "🐘" * 999, "<|endoftext|>", ""]
    ids = tokenizer.encode(texts)
    assert tokenizer.decode(ids) == texts
    assert all(row.dtype == np.uint16 for row in ids)
    assert tokenizer.end_id == 0
    assert not any((row == 0).any() for row in ids)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_training_again_gives_the_same_tokenizer(model: str) -> None:
    command = [sys.executable, "-c", _TRAIN, model]
    runs = [
        subprocess.run(command, env={"RAYON_NUM_THREADS": n}, capture_output=True, check=True)
        for n in ("1", "2", "2")
    ]
    definitions = {run.stdout for run in runs}
    assert len(definitions) == 1
    assert len(json.loads(definitions.pop())["model"]["vocab"]) > 300


_TRAIN = """
import sys
from retro_db.config import TrainTokenizerConfig
from retro_db.tokens.tokenizer_training import train_tokenizer
texts = [f"some words {n * n} that are-repeated {n % 7}, with other's words" for n in range(3000)]
settings = TrainTokenizerConfig(model=sys.argv[1], vocab_size=400)
print(train_tokenizer(texts, settings).definition)
"""


@pytest.mark.parametrize("make", [trained, gpt4])
def test_segments_of_a_long_text_equal_the_whole(make: Any) -> None:
    tokenizer = make()
    text = long_text(700_000)
    parts = list(segments(text))
    assert len(parts) > 5
    assert "".join(parts) == text
    assert max(map(len, parts)) < 2 * SEGMENT
    whole = encode_whole(tokenizer, text)
    assert tokenizer.encode(["a", text])[1].tolist() == whole
    assert np.concatenate(list(tokenizer.encode_long(text))).tolist() == whole


def test_megabytes_in_segments_equal_the_whole() -> None:
    tokenizer = trained()
    text = long_text(amount(quick=2_000_000, soak=10_000_000))
    assert np.concatenate(list(tokenizer.encode_long(text))).tolist() == encode_whole(
        tokenizer, text
    )


@pytest.mark.parametrize(
    ("tokenizer", "may_cut"),
    [
        (trained, True),
        (gpt4, True),
        (lambda: with_pre_tokenizer(pre_tokenizers.WhitespaceSplit()), True),
        (lambda: with_pre_tokenizer(pre_tokenizers.Metaspace()), True),
        # Words of two, and pieces that look behind, at a boundary, or at the end of the text.
        (lambda: split_by(r"\S+ \S+|\s+|\S+"), False),
        (lambda: split_by(r"[A-Z][a-z]+ [A-Z][a-z]+|\s+|\S+"), False),
        (lambda: split_by(r"\p{N}{1,3}(?: \p{N}{3})*| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), False),
        (lambda: with_pre_tokenizer(pre_tokenizers.Split("New York", "isolated")), False),
        (lambda: split_by(O200K), True),
        (lambda: split_by(r"(?<=a) \w+|\s+|\S+"), False),
        (lambda: split_by(r"\S+\b|\s+|\S+"), False),
        (lambda: split_by(r"\S+$|\s+|\S+"), False),
        # Nothing between the words is matched, so that they stay together.
        (lambda: split_by(r"\d+"), False),
        (lambda: with_pre_tokenizer(pre_tokenizers.ByteLevel(), normalizers.NFKC()), False),
        (lambda: with_pre_tokenizer(pre_tokenizers.ByteLevel(use_regex=False)), False),
        (lambda: with_pre_tokenizer(pre_tokenizers.FixedLength(5)), False),
    ],
)
def test_where_long_texts_may_be_cut(tokenizer: Any, may_cut: bool) -> None:
    rust = RustTokenizer.from_str(tokenizer().definition)
    assert is_cut_before_spaces(rust) == may_cut


def split_by(pattern: str) -> Tokenizer:
    return with_pre_tokenizer(pre_tokenizers.Split(Regex(pattern), "isolated"))


def test_added_tokens_with_spaces_forbid_cutting() -> None:
    rust = RustTokenizer.from_str(trained().definition)
    rust.add_tokens(["def main"])
    assert not is_cut_before_spaces(rust)


def test_what_cannot_be_cut_is_bounded(tmp_path: Path) -> None:
    words = "word " * 3_300_000
    assert trained().can_encode(words)
    assert not split_by(r"\d+").can_encode(words)
    assert not trained().can_encode("x" * 16_000_001)
    assert trained().can_encode("x" * 16_000_000)
    assert not trained().can_encode("é" * 8_000_001)
    project = make_project(tmp_path, ["fine " * 50, "y" * 17_000_000])
    project.settings["corpus"][0]["max_bad"] = 0.5
    assert project.build() == 0
    [source] = project.open().manifest.sources
    assert (source.documents, source.rejected_by) == (1, {"too long": 1})


def test_memory_for_a_long_document_is_bounded(tmp_path: Path) -> None:
    # With one emoji, which makes each character take four bytes in Python.
    size = amount(quick=10_000_000, soak=60_000_000)
    small = chunk_memory(tmp_path / "small", "a short text")
    large = chunk_memory(tmp_path / "large", "🐘" + "a long text of short words, " * (size // 28))
    assert large - small < 8 * size + amount(quick=350_000_000, soak=500_000_000)
    [record] = map(json.loads, records(tmp_path / "large" / "db"))
    assert record["result"]["parts"][0]["documents"]["rows"] == 1


def chunk_memory(folder: Path, text: str) -> int:
    """Peak memory in bytes of a process that chunks one document."""
    project = make_project(folder, [text])
    project.settings["tokenizer"] = {"train": {"vocab_size": 300, "sample": "1MB"}}
    program = [sys.executable, "-c", _CHUNK, str(project.config)]
    result = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def records(output: Path) -> list[str]:
    return (output / "state/records/chunk.jsonl").read_text().splitlines()


_CHUNK = """
import sys
from retro_db_pipelines.commands.cli import run
from support.memory import peak
for stage in ("tokenizer", "chunk"):
    assert run(["stage", stage, sys.argv[1]]) == 0
print(peak())
"""


def sentencepiece_model(folder: Path, kind: str, **options: Any) -> Path:
    lines = [line.replace("\t", "    ") for text in TEXTS for line in text.splitlines() if line]
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=writer,
        model_type=kind,
        vocab_size=800,
        minloglevel=2,
        **options,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(writer.getvalue())
    return path


EXACT = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


RULES = ["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity", "own"]


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_models_give_the_ids_of_sentencepiece(
    tmp_path: Path, kind: str, byte_fallback: bool
) -> None:
    own = tmp_path / "rules.tsv"
    own.write_text("61 301\tE1\n41\t61\n31 32\t\n")
    strings = odd_strings()
    for rule in amount(quick=RULES[:: 5 if byte_fallback else 3], soak=RULES):
        chosen = (
            {"normalization_rule_tsv": str(own)}
            if rule == "own"
            else {"normalization_rule_name": rule}
        )
        options: dict[str, Any] = {
            "byte_fallback": byte_fallback,
            "user_defined_symbols": ["[SEP]"],
            **chosen,
        }
        path = sentencepiece_model(tmp_path, kind, **options)
        tokenizer = Tokenizer.load(str(path))
        assert tokenizer.files == Tokenizer.load(str(tmp_path)).files, "by file or by folder"
        original = sentencepiece.SentencePieceProcessor(model_file=str(path))
        for start in range(0, len(strings), 10_000):
            texts = strings[start : start + 10_000]
            assert [ids.tolist() for ids in tokenizer.encode(texts)] == original.encode(texts)
        long = " ".join(strings[:9_000])
        lacking: list[int] = []
        encoded = np.concatenate(list(tokenizer.encode_long(long, lacking))).tolist()
        assert encoded == original.encode(long)
        assert bool(sum(lacking)) != byte_fallback
        assert tokenizer.end_id == original.eos_id()
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
        assert again.encode(["[SEP] Ấ <s>"])[0].tolist() == original.encode("[SEP] Ấ <s>")


def odd_strings() -> list[str]:
    """Every character, as it is and in every normal form, alone and among others; and mixtures."""
    step = amount(quick=61, soak=3)
    characters = [
        chr(point)
        for point in range(0, 0x110000, step)
        if unicodedata.category(chr(point)) not in ("Cs", "Cn", "Co")
    ]
    decomposable = [
        chr(point)
        for point in range(0x110000)
        if unicodedata.decomposition(chr(point)) and not 0xD800 <= point < 0xE000
    ]
    forms = ["NFC", "NFD", "NFKC", "NFKD"]
    texts = [
        pattern.replace("{}", unicodedata.normalize(form, character))
        for character in characters + decomposable[:: amount(quick=11, soak=1)]
        for form in forms
        for pattern in ("{}", "a{} {}\u0301b")
    ]
    source = random.Random(11)
    pool = [*decomposable, *characters, *" \t\n<>[]s/ab\u0301\u200b\uff9e\u3000\u2581"]
    texts += [
        "".join(source.choices(pool, k=source.randrange(1, 12)))
        for _ in range(amount(quick=1_000, soak=20_000))
    ]
    return [*texts, "<s> </s> <unk> <0x41> [SEP][SEP]", "", " ", "  a  b "]


def test_sentencepiece_models_in_segments_equal_the_whole(tmp_path: Path) -> None:
    text = long_text(amount(quick=300_000, soak=3_000_000))
    for options in (EXACT, EXACT | {"add_dummy_prefix": False}):
        path = sentencepiece_model(tmp_path, "bpe", **options)
        tokenizer = Tokenizer.load(str(path))
        original = sentencepiece.SentencePieceProcessor(model_file=str(path))
        encoded = list(tokenizer.encode_long(text))
        assert np.concatenate(encoded).tolist() == original.encode(text)
        assert tokenizer.can_encode("word " * 3_300_000), "it is cut"
        assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS


def test_other_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    path = sentencepiece_model(tmp_path, "word", hard_vocab_limit=False)
    with pytest.raises(ModelError, match="use Unigram or BPE"):
        Tokenizer.load(str(path))
    path.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match="is not a SentencePiece model"):
        Tokenizer.load(str(path))


def test_tokens_of_a_unigram_are_never_special_or_bytes_of_a_text() -> None:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), ("</s>", 0.0)]
    rust = RustTokenizer(models.Unigram([*pieces, ("\u2581", -2.0), ("a", -3.0)], 0, True))
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    rust.add_special_tokens(["<unk>"])
    rust.add_tokens(["<tool>"])
    tokenizer = Tokenizer(rust.to_str(), {"eos_token": "</s>"})
    text = "a <0x41> </s> <unk> a"
    [ids] = tokenizer.encode([text])
    assert not {0, 257} & set(ids.tolist())
    assert tokenizer.decode([ids]) == [text]
    assert tokenizer.encode(["<tool>"])[0].tolist()[-1] == rust.token_to_id("<tool>")


def test_words_that_are_special_tokens_stay_words() -> None:
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "a": 2, "[": 3, "PAD": 4, "]": 5}
    for model in (
        models.WordLevel(vocabulary, "[UNK]"),
        models.WordPiece(vocabulary, unk_token="[UNK]"),  # noqa: S106
    ):
        rust = RustTokenizer(model)
        rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        rust.add_special_tokens(["[UNK]", "[PAD]"])
        rust.add_tokens(["<tool>"])
        tokenizer = Tokenizer(rust.to_str(), {})
        lacking: list[int] = []
        [ids] = tokenizer.encode(["a [PAD] bb <tool>"], lacking)
        assert ids.tolist() == [2, 0, 0, rust.token_to_id("<tool>")]
        assert lacking == [7]


def test_ids_need_the_wider_type_when_the_vocabulary_does() -> None:
    vocabulary = {f"word{number}": number for number in range(70_000)}
    rust = RustTokenizer(models.WordLevel(vocabulary, unk_token="word0"))  # noqa: S106
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(rust.to_str(), {})
    [ids] = tokenizer.encode(["word69999 word1"])
    assert ids.dtype == np.uint32
    assert ids.tolist() == [69_999, 1]
