"""Trains byte-level tokenizers on a corpus; they encode any text and decode it exactly."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro_db.config import TrainTokenizerConfig
from retro_db.tokens.segments import segments
from retro_db.tokens.tokenizer import Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"
# Unigram's lattice needs an entry for unknown text, although with all bytes known it is never used.
_UNKNOWN = "<|unknown|>"
_LONG_RUN = re.compile(r"\S{1000}|\s{1000}")


def train_tokenizer(texts: Iterable[str], settings: TrainTokenizerConfig) -> Tokenizer:
    """Trains a tokenizer; the result depends on the texts and settings, not on threads.

    Args:
        texts: Texts to train on.
        settings: Model and largest number of entries, including the 256 bytes and special tokens.

    Returns:
        The tokenizer, in which `<|endoftext|>` has the id 0.
    """
    texts = itertools.chain.from_iterable(map(_short_pieces, texts))
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    if settings.model == "bpe":
        _train_bpe(rust, texts, settings.vocab_size)
    else:
        rust.model = _trained_unigram(rust, texts, settings.vocab_size)
        rust.add_special_tokens([END_OF_DOCUMENT, _UNKNOWN])
    return Tokenizer(rust.to_str(), {"eos_token": END_OF_DOCUMENT})


def _short_pieces(text: str) -> Iterator[str]:
    """Cuts a text within words of over 1,000 characters, which would slow down every merge."""
    for segment in segments(text):
        yield from _LONG_RUN.sub("\\g<0>\0", segment).split("\0")


def _train_bpe(rust: RustTokenizer, texts: Iterable[str], vocab_size: int) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer=trainer)


def _trained_unigram(rust: RustTokenizer, texts: Iterable[str], vocab_size: int) -> models.Unigram:
    """A Unigram model trained by SentencePiece, as the trainer of `tokenizers` differs between runs."""
    import sentencepiece

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in rust.pre_tokenizer.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    # Every byte is also a word, so that each is in the vocabulary even if the corpus lacks it.
    lines = [f"{word}\t{count}" for word, count in words] + [f"{byte}\t1" for byte in alphabet]
    model_file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model_file,
        input_format="tsv",
        model_type="unigram",
        vocab_size=vocab_size - 1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars="".join(alphabet),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        max_sentence_length=1 << 30,
        num_threads=1,
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        unk_piece=_UNKNOWN,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_file.getvalue())
    piece_ids = range(1, processor.get_piece_size())
    vocabulary = [(processor.id_to_piece(i), processor.get_score(i)) for i in piece_ids]
    special = [(END_OF_DOCUMENT, 0.0), (_UNKNOWN, 0.0)]
    return models.Unigram([*special, *vocabulary], unk_id=1)
