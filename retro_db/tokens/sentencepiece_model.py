"""Turns SentencePiece models into fast tokenizers, and checks each against SentencePiece."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from retro_db.errors import ModelError

_SPACE = "\u2581"
# sentencepiece_model.proto
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
# Score below any path through normal pieces, so that text never becomes a control or byte piece.
_UNREACHABLE = -1000.0
_PROBES = (
    "",
    "Hello world, this is text.",
    "  two  spaces, a\ttab\nand lines\r\n\r\n of all\u00a0kinds ",
    "naïve café \ufb01ne \u216b \uff11\uff12 e\u0301 Å",
    "北京 東京 서울 Ελλάδα Москва שלום مرحبا नमस्ते",
    "emoji 🐘🎉 👩\u200d🚀 \x00 \x7f \ufffd \u2581 ▁▁",
    "<s> </s> <unk> <pad> <0x0A> <0xE2><0x96> [INST]",
    "def f(x):\n    return x ** 2  # comment\n\n\n" * 3,
    "1234567890 3.14159 -17 1e-5 £5.00 50% a_b-c/d",
    "Supercalifragilisticexpialidocious" * 20,
)


def convert_model(path: Path) -> tuple[str, dict[str, Any]]:
    """Turns a SentencePiece model into the definition of a fast tokenizer.

    Args:
        path: Path of the .model file, Unigram or BPE.

    Returns:
        The text of a tokenizer.json, and settings that name its special tokens.

    Raises:
        ModelError: The file is not such a model, or the result would give other ids than SentencePiece.
    """
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    data = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(data)
        original = sentencepiece.SentencePieceProcessor(model_proto=data)
    except (DecodeError, RuntimeError) as error:
        raise ModelError(f"tokenizer.path: {path} is not a SentencePiece model") from error
    rust = _convert(proto, path)
    symbols = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    for probe in (*_PROBES, *(f"a {symbol} b{symbol}" for symbol in symbols)):
        ids = rust.encode(probe, add_special_tokens=False).ids
        if ids != original.encode(probe) and not _is_tie(original, ids, probe):
            raise ModelError(
                f"tokenizer.path: {path} cannot be turned into a fast tokenizer: {probe[:40]!r} would "
                "get other ids; name the model's own tokenizer.json"
            )
    names = {"bos_token": original.bos_id(), "eos_token": original.eos_id()}
    names |= {"pad_token": original.pad_id(), "unk_token": original.unk_id()}
    settings = {name: original.id_to_piece(piece) for name, piece in names.items() if piece >= 0}
    return rust.to_str(), settings


def _is_tie(original: Any, ids: list[int], text: str) -> bool:
    """Whether two segmentations are equally probable, up to the rounding of sums in float32.

    SentencePiece adds up log-probabilities in float32, `tokenizers` in float64.
    """
    scores = [sum(map(original.get_score, pieces)) for pieces in (ids, original.encode(text))]
    return original.decode(ids) == original.decode(original.encode(text)) and math.isclose(
        *scores, rel_tol=1e-5
    )


def _convert(proto: Any, path: Path) -> RustTokenizer:
    kind, fallback = proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback
    if kind == _UNIGRAM:
        model: Any = models.Unigram(_scores(proto), proto.trainer_spec.unk_id, fallback)
    elif kind == _BPE:
        model = models.BPE(
            {piece.piece: number for number, piece in enumerate(proto.pieces)},
            _merges(proto),
            unk_token=proto.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=fallback,
        )
    else:
        raise ModelError(
            f"tokenizer.path: {path} is a word or character model of SentencePiece; use Unigram or BPE"
        )
    rust = RustTokenizer(model)
    rust.encode_special_tokens = True
    rust.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec))
    if not any(_SPACE in piece.piece[1:] for piece in proto.pieces):
        # No piece reaches over a space: words can be tokenized separately, which is faster.
        rust.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=True)
    rust.decoder = _decoder(
        dummy_prefix=proto.normalizer_spec.add_dummy_prefix, byte_fallback=fallback
    )
    rust.add_special_tokens([p.piece for p in proto.pieces if p.type in (_CONTROL, _UNKNOWN)])
    rust.add_tokens(
        [AddedToken(p.piece, normalized=False) for p in proto.pieces if p.type == _USER_DEFINED]
    )
    return rust


def _scores(proto: Any) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities, lowered for pieces that text must not become."""
    reachable = (_NORMAL, _USER_DEFINED)
    return [
        (piece.piece, piece.score if piece.type in reachable else _UNREACHABLE)
        for piece in proto.pieces
    ]


def _merges(proto: Any) -> list[tuple[str, str]]:
    """The merges behind a BPE vocabulary: every normal piece from two others, the best piece first."""
    ranks = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = []
    for piece, score in ranks.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(-score, left, right) for left, right in halves if {left, right} <= ranks.keys()]
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]


def _normalizers(spec: Any) -> list[Any]:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return [*steps, normalizers.Replace(" ", _SPACE)]


def _decoder(*, dummy_prefix: bool, byte_fallback: bool) -> Any:
    steps: list[Any] = [decoders.Replace(_SPACE, " ")]
    if byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    return decoders.Sequence(steps)
