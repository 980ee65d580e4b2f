"""A model's files to its tokenizer, its frozen network and what follows it: whole, or an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, normalizers
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from retro_db.encoder.declared import Declared, DenseLayer, read_declared, read_dense
from retro_db.encoder.models import (
    TRANSFORMER_ALONE,
    EncoderModel,
    reason_of,
    transformer_class,
)
from retro_db.errors import ModelError

# What wrappers of a model put before the names of its tensors.
_WRAPPERS = ("auto_model.", "model.", "module.", "_orig_mod.")
# No part of the last hidden state.
_POOLER = "pooler"
_SHOWN = 3


@dataclass(frozen=True)
class Transformer:
    """A loaded transformer.

    Attributes:
        tokenizer: Its tokenizer, which cuts texts and does not pad.
        pad_id: Id that padding gets.
        network: The network with all of its weights, frozen.
        has_types: Whether the network is meant to be given the tokenizer's types of WordPieces.
    """

    tokenizer: Tokenizer
    pad_id: int
    network: Any
    has_types: bool


def load_transformer(folder: Path, model: EncoderModel) -> Transformer:
    """Loads the tokenizer and the frozen network of a model.

    Args:
        folder: Folder of the model.
        model: The model's settings.

    Raises:
        ModelError: A file cannot be loaded, or the weights lack a tensor that the last hidden state needs:
            transformers would fill it with random numbers.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Databases up to format 1.4 heeded nothing that the folder says beside the transformer.
    whole = model.identity != TRANSFORMER_ALONE
    declared = read_declared(folder) if whole else Declared()
    place = folder / declared.transformer
    try:
        fast = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False)
        tokenizer = fast.backend_tokenizer
        network = _load_network(place, model.dtype)
    except ModelError:
        raise
    except Exception as error:  # files of the folder can make transformers raise any exception
        raise ModelError(f"encoder.model: {place} cannot be loaded: {reason_of(error)}") from error
    tokenizer.no_padding()
    side = fast.truncation_side if whole else "right"
    tokenizer.enable_truncation(model.max_length, direction=side)
    if declared.lower_case:
        _lower_case(tokenizer)
    return Transformer(
        tokenizer,
        fast.pad_token_id or 0,
        network.eval().requires_grad_(False),
        "token_type_ids" in fast.model_input_names,
    )


def _lower_case(tokenizer: Tokenizer) -> None:
    """Puts texts in lower case before all else."""
    steps = [normalizers.Lowercase()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)


def _load_network(folder: Path, dtype: str) -> Any:
    """Loads the network, without what wraps the names of its tensors if they would not fit otherwise."""
    network, missing = _load_named(folder, dtype, "")
    wrapper = _wrapper(folder) if missing else ""
    if wrapper:
        network, missing = _load_named(folder, dtype, wrapper)
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ModelError(
            f"encoder.model: the weights in {folder} lack {', '.join(missing[:_SHOWN])}{more}, which "
            f"{type(network).__name__} needs; name the checkpoint that belongs to this config.json"
        )
    return network


def _load_named(folder: Path, dtype: str, wrapper: str) -> tuple[Any, list[str]]:
    """Loads the network from tensors whose names begin with a wrapper's; also, what it lacks then."""
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    network, loaded = transformer_class(settings).from_pretrained(
        folder,
        use_safetensors=True,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        trust_remote_code=False,
        key_mapping={f"^{re.escape(wrapper)}": ""} if wrapper else None,
    )
    missing = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
    return network, sorted(name for name in missing if _POOLER not in name.split("."))


def _wrapper(folder: Path) -> str:
    """What known wrappers have put before the names of all tensors of a folder."""
    names: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            names += weights.keys()
    wrapper = ""
    while added := next(
        (known for known in _WRAPPERS if all(name.startswith(wrapper + known) for name in names)),
        None,
    ):
        wrapper += added
    return wrapper


class _Normalize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=-1)


def load_head(folder: Path, model: EncoderModel) -> torch.nn.Module:
    """Loads what follows the pooling: dense layers in float32, and scaling to length 1.

    Args:
        folder: Folder of the model.
        model: The model's settings.

    Raises:
        ModelError: A layer cannot be loaded.
    """
    steps: list[torch.nn.Module] = []
    for path in model.dense:
        steps += _load_dense(folder / path, read_dense(folder / path))
    if model.normalize:
        steps.append(_Normalize())
    return torch.nn.Sequential(*steps).eval().requires_grad_(False)


def _load_dense(folder: Path, layer: DenseLayer) -> list[torch.nn.Module]:
    linear = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias)
    try:
        [file] = folder.glob("*.safetensors")
        weights = load_file(file)
        linear.load_state_dict(
            {name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()}
        )
        activation: Any = getattr(torch.nn, layer.activation)()
    except Exception as error:  # files of the folder can make torch raise any exception
        raise ModelError(f"encoder.model: {folder} cannot be loaded: {reason_of(error)}") from error
    return [linear, activation]
