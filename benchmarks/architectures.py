"""Which architectures of transformers are embedded right: the table in docs/encoders.md.

    python benchmarks/architectures.py            write the table
    python benchmarks/architectures.py --print    print it

Each is a tiny model with random weights in a folder of its own, which the command reads as it would read any
other: batches of texts of several lengths are compared with each text alone by transformers.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retro_db.config import EncoderConfig
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.loading import load_transformer
from retro_db.encoder.models import describe_model
from retro_db.encoder.trial import try_model
from retro_db.errors import ModelError
from retro_db_pipelines.commands.demo import encoder_folder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "encoders.md"
BEGIN, END = "<!-- architectures -->", "<!-- end of architectures -->"
# Where WordPieces of several lengths come from.
_WORDS = "the time of this and one day new people world where many water long".split()  # noqa: SIM905
_LENGTHS = (1, 2, 3, 7, 20, 60, 100)
_TOLERANCE = 1e-5
# Some tokenizers of transformers add special ones.
_SPARE = 8
_NARROW = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
_BERT = {**_NARROW, "num_hidden_layers": 2}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 8}
_T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
_XLM = {"emb_dim": 32, "n_heads": 4, "n_layers": 2}
# Model and configuration of transformers, and what makes it tiny.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "AlbertModel": {**_BERT, "embedding_size": 16},
    "BartModel": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
    "BertModel": _BERT,
    "BertGenerationEncoder": _BERT,
    "BigBirdModel": {**_BERT, "attention_type": "original_full"},
    "BloomModel": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "CamembertModel": _BERT,
    "CanineModel": _BERT,
    "ConvBertModel": {**_BERT, "embedding_size": 16},
    "Data2VecTextModel": _BERT,
    "DebertaModel": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DebertaV2Model": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DistilBertModel": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "DPRQuestionEncoder": _BERT,
    "ElectraModel": {**_BERT, "embedding_size": 16},
    "ErnieModel": _BERT,
    "EsmModel": {**_BERT, "pad_token_id": 0, "mask_token_id": 103},
    "EuroBertModel": _LLAMA,
    "FlaubertModel": _XLM,
    "FNetModel": _BERT,
    "FunnelModel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1]},
    "Gemma2Model": _LLAMA,
    "Gemma3TextModel": _LLAMA,
    "GPT2Model": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "GPTNeoXModel": _BERT,
    "IBertModel": _BERT,
    "LayoutLMModel": _BERT,
    "LiltModel": {**_BERT, "hidden_size": 48},
    "LlamaModel": _LLAMA,
    "LongformerModel": {**_BERT, "attention_window": 16},
    "LongT5EncoderModel": _T5,
    "LukeModel": {**_BERT, "entity_vocab_size": 10, "entity_emb_size": 8},
    "LxmertModel": {**_NARROW, "l_layers": 1, "x_layers": 1, "r_layers": 1},
    "MegatronBertModel": _BERT,
    "MistralModel": _LLAMA,
    "MobileBertModel": {**_BERT, "embedding_size": 32, "intra_bottleneck_size": 32},
    "ModernBertModel": _BERT,
    "MPNetModel": _BERT,
    "MraModel": {**_BERT, "max_position_embeddings": 256},
    "MT5EncoderModel": _T5,
    "NomicBertModel": _BERT,
    "NystromformerModel": _BERT,
    "OpenAIGPTModel": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "OPTModel": {**_BERT, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "PerceiverModel": {"d_model": 32, "d_latents": 32, "num_latents": 8},
    "PhiModel": _BERT,
    "Qwen2Model": _LLAMA,
    "Qwen3Model": _LLAMA,
    "ReformerModel": {"hidden_size": 32, "num_attention_heads": 2, "axial_pos_embds_dim": [16, 16]},
    "RemBertModel": {**_BERT, "input_embedding_size": 16},
    "RobertaModel": _BERT,
    "RobertaPreLayerNormModel": _BERT,
    "RoCBertModel": _BERT,
    "RoFormerModel": {**_BERT, "embedding_size": 32},
    "SplinterModel": _BERT,
    "SqueezeBertModel": {**_BERT, "embedding_size": 32},
    "T5EncoderModel": _T5,
    "T5Model": _T5,
    "TapasModel": _BERT,
    "UMT5EncoderModel": _T5,
    "XLMModel": _XLM,
    "XLMRobertaModel": _BERT,
    "XLMRobertaXLModel": _BERT,
    "XLNetModel": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "XmodModel": _BERT,
    "YosoModel": _BERT,
}


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture.

    Attributes:
        name: Class of transformers.
        way: How it is embedded: padded, by equal lengths, or not at all.
        error: Largest difference from a text alone, as a share of the embedding's length; None if refused.
        reason: Why it is refused; empty if it is not.
    """

    name: str
    way: str
    error: float | None = None
    reason: str = ""


def make_model(folder: Path, name: str) -> None:
    """Saves a tiny model with random weights, and the demo's tokenizer."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder())
    settings = kind.config_class(**ARCHITECTURES[name])
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (getattr(settings, field, None) or 0) >= tokenizer.vocab_size:
            setattr(settings, field, 0)
    with suppress(AttributeError, NotImplementedError):  # some count their characters
        settings.vocab_size = tokenizer.vocab_size + _SPARE
    model = kind(settings).eval()
    for module in model.modules():
        # Trained models may have other numbers than zeros for padding.
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.1)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(encoder_folder() / file, folder)


def texts() -> list[str]:
    """Texts of several lengths, each word of which is a WordPiece."""
    return [" ".join(_WORDS[i % len(_WORDS)] for i in range(n)) for n in _LENGTHS]


def alone(folder: Path, encoder: Encoder) -> np.ndarray:
    """The mean of each text by transformers, one text at a time: float32 [n, d]."""
    network = load_transformer(folder, encoder.model).network
    means = []
    for window in (encoder.tokenize([text]) for text in texts()):
        ids = torch.from_numpy(window.ids)[None]
        with torch.inference_mode():
            output = network(input_ids=ids, attention_mask=torch.ones_like(ids))
        means.append(output.last_hidden_state[0].mean(dim=0).numpy())
    return np.stack(means)


def outcome_of(folder: Path, name: str) -> Outcome:
    """Makes a model of an architecture, and embeds with it."""
    make_model(folder, name)
    config = EncoderConfig(model=str(folder), device="cpu")
    try:
        model = try_model(config, describe_model(config))
    except ModelError as error:
        return Outcome(name, "refused", reason=str(error).replace(f"{folder} ", ""))
    encoder = Encoder(folder, model)
    expected = alone(folder, encoder)
    differences = np.linalg.norm(encoder.encode(texts()) - expected, axis=1)
    error = float((differences / np.linalg.norm(expected, axis=1)).max())
    return Outcome(name, "equal lengths" if model.equal_lengths else "padded", error)


def outcomes() -> Iterator[Outcome]:
    """Tries every architecture."""
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            yield outcome_of(Path(folder), name)


def row(outcome: Outcome) -> str:
    """A row of the table."""
    said = outcome.reason.replace("|", "\\|")
    if outcome.error is not None:
        said = "below 1e-5" if outcome.error < _TOLERANCE else f"{outcome.error:.1e}"
    return f"| `{outcome.name}` | {outcome.way} | {said} |"


def table(tried: list[Outcome]) -> str:
    """The table in Markdown."""
    head = "| architecture | batches | difference from a text alone, or why it is refused |\n|---|---|---|"
    return "\n".join([head, *map(row, tried)])


def main() -> None:
    """Writes or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true")
    made = table(list(outcomes()))
    if parser.parse_args().print:
        print(made)
        return
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
