"""SentencePiece models, encoded by SentencePiece itself: what `tokenizers` makes of them differs.

Its character maps drop combining marks, it breaks ties between merges and sums otherwise, and it lets
text become control pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retro_db.errors import ModelError
from retro_db.threads import available_cores
from retro_db.tokens.segments import SEGMENT, segments

_SPACE = "\u2581"
# sentencepiece_model.proto
_UNIGRAM, _BPE = 1, 2
_NAMES = ("bos", "eos", "pad", "unk")


class SentencePieceModel:
    """A SentencePiece model, Unigram or BPE.

    Args:
        content: Bytes of the .model file.

    Raises:
        ValueError: They are not such a model.
    """

    file_name = "tokenizer.model"
    padding = None

    def __init__(self, content: bytes) -> None:
        import sentencepiece
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        self.content = content
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(content)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (DecodeError, RuntimeError) as error:
            raise ValueError("is not a SentencePiece model") from error
        if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
            raise ValueError("is a word or character model of SentencePiece; use Unigram or BPE")
        self.vocab_size = int(self._processor.get_piece_size())
        self.is_complete = bool(proto.trainer_spec.byte_fallback)
        self.special = {self._processor.id_to_piece(i) for i in self._named_ids().values()}
        self.special |= {p.piece for p in proto.pieces if p.type == p.CONTROL}
        self._unknown = int(self._processor.unk_id())
        self._drops_space = bool(proto.normalizer_spec.add_dummy_prefix)
        self._can_cut = _is_cut_before_spaces(proto)

    def _named_ids(self) -> dict[str, int]:
        ids = {name: int(getattr(self._processor, f"{name}_id")()) for name in _NAMES}
        return {f"{name}_token": number for name, number in ids.items() if number >= 0}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that name the special tokens."""
        return {
            name: self._processor.id_to_piece(number) for name, number in self._named_ids().items()
        }

    def id_of(self, token: str) -> int | None:
        """The id of a piece; None if there is none of this name."""
        number = int(self._processor.piece_to_id(token))
        return number if self._processor.id_to_piece(number) == token else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, or of each segment of one."""
        is_parallel = os.environ.get("TOKENIZERS_PARALLELISM") != "false" and len(texts) > 1
        threads = available_cores() if is_parallel else 1
        return self._processor.encode(list(texts), num_threads=threads)

    def decode(self, rows: Sequence[list[int]]) -> list[str]:
        """Text of each row of ids."""
        return self._processor.decode([[i for i in row if i < self.vocab_size] for row in rows])

    def segments(self, text: str) -> Iterator[str]:
        """Cuts a text into segments that, encoded separately, give its ids; short texts are one."""
        if len(text) <= SEGMENT or not self._can_cut:
            yield text
            return
        for number, segment in enumerate(segments(text)):
            # The model puts a space before every segment.
            yield segment[1:] if number and self._drops_space else segment

    def without_token(self, text: str, ids: np.ndarray) -> int:
        """Characters of a text for which there is no token.

        Args:
            text: The text.
            ids: Its ids.
        """
        if not (ids == self._unknown).any():
            return 0
        pieces = self._processor.encode_as_immutable_proto(text).pieces
        return sum(len(piece.surface) for piece in pieces if piece.id == self._unknown)


def read_model(path: Path) -> SentencePieceModel:
    """Reads a SentencePiece model.

    Args:
        path: Path of the .model file, Unigram or BPE.

    Raises:
        ModelError: The file is not such a model.
    """
    try:
        return SentencePieceModel(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"tokenizer.path: {path} {error}") from error


def _is_cut_before_spaces(proto: Any) -> bool:
    """Whether a text may be cut before any single space between two other characters.

    It may for BPE without a character map: no merge reaches over a space if no piece does, and merges are
    compared, not added up as the scores of Unigram are.
    """
    spec = proto.normalizer_spec
    if proto.trainer_spec.model_type != _BPE or proto.trainer_spec.treat_whitespace_as_suffix:
        return False
    if spec.precompiled_charsmap or not spec.escape_whitespaces:
        return False
    if spec.remove_extra_whitespaces and not spec.add_dummy_prefix:
        return False
    pieces = [piece.piece for piece in proto.pieces]
    return _SPACE in pieces and not any(_SPACE in piece[1:] or " " in piece for piece in pieces)
