"""How a model's folder says that the model is meant: the files of sentence-transformers, read as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro_db.errors import ModelError
from retro_db.store.entries import FOLDER_NAME
from retro_db.store.serialize import DecodeError, parse_json

MODULES, PROMPTS, WORDPIECES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
)
# Prompts of texts that are searched, as `SentenceTransformer.encode_document` looks for them.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_EMBEDDING = "sentence_embedding"


@dataclass(frozen=True)
class Declared:
    """What a folder says of its model; a folder that says nothing means a plain mean.

    Attributes:
        transformer: Path in the folder of the transformer and its tokenizer; empty for the folder itself.
        modules: Paths in the folder of all modules that have one.
        pooling: How token vectors become an embedding.
        pools_prompt: Whether the prompt's own tokens are pooled with the others.
        dense: Paths in the folder of dense layers behind the pooling, in order.
        normalize: Whether an embedding is scaled to length 1 at the end.
        prompt: What is put before every document.
        max_length: Number of WordPieces after which a text is cut; None if it does not say.
        lower_case: Whether texts are put in lower case first.
        similarity: How embeddings are compared, such as cosine or dot; None if it does not say.
    """

    transformer: str = ""
    modules: tuple[str, ...] = ()
    pooling: str = "mean"
    pools_prompt: bool = True
    dense: tuple[str, ...] = ()
    normalize: bool = False
    prompt: str = ""
    max_length: int | None = None
    lower_case: bool = False
    similarity: str | None = None


def read_declared(folder: Path) -> Declared:
    """Reads how a folder says that its model is meant.

    Args:
        folder: Folder of the model.

    Raises:
        ModelError: A file of it cannot be read, or names a module or a setting that is not known here.
    """
    if not folder.joinpath(MODULES).is_file():
        return Declared(prompt=_prompt(folder), similarity=_similarity(folder))
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _error(folder / MODULES, "does not begin with a Transformer and a Pooling")
    transformer = modules[0][1]
    pooling, pools_prompt = _pooling(folder / modules[1][1] / "config.json")
    dense: list[str] = []
    normalize = False
    for kind, path in modules[2:]:
        if normalize or kind not in ("Dense", "Normalize", "Dropout"):
            raise _error(
                folder / MODULES,
                f"has the module {kind} behind {'Normalize' if normalize else 'Pooling'}; what is known "
                "is Transformer, Pooling, any Dense, and at most one Normalize at the end",
            )
        if kind == "Dense":
            dense.append(path)
        normalize = kind == "Normalize"
    max_length, lower_case = _wordpieces(folder / transformer)
    return Declared(
        transformer=transformer,
        modules=tuple(path for _, path in modules if path),
        pooling=pooling,
        pools_prompt=pools_prompt,
        dense=tuple(dense),
        normalize=normalize,
        prompt=_prompt(folder),
        max_length=max_length,
        lower_case=lower_case,
        similarity=_similarity(folder),
    )


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and path of every module, in order."""
    file = folder / MODULES
    listed = _read(file, list)
    modules = []
    for module in listed:
        if not isinstance(module, dict):
            raise _error(file, "has a module that is not an object")
        kind, path = module.get("type"), module.get("path", "")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise _error(file, "has a module without a type or a path")
        if path and not FOLDER_NAME.fullmatch(path):
            raise _error(file, f"has the path {path[:100]!r}, which is not a folder beside it")
        if not kind.startswith("sentence_transformers."):
            raise _error(
                file,
                f"has the module {kind[:100]}, which is code of its own; code of a model is never run",
            )
        modules.append((kind.rsplit(".", 1)[-1], path))
    return modules


def _pooling(file: Path) -> tuple[str, bool]:
    """The pooling, and whether it includes the prompt's tokens."""
    settings = read_settings(file)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if settings.get(flag)] or "mean"
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise _error(
            file,
            f"pools by {modes!r:.100}; what is known is one of {', '.join(_POOLINGS)}",
        )
    return _POOLINGS[modes[0]], bool(settings.get("include_prompt", True))


def _wordpieces(folder: Path) -> tuple[int | None, bool]:
    """Number of WordPieces after which a text is cut, if any is said, and whether it is put in lower case."""
    for file in sorted(folder.glob(WORDPIECES)):
        settings = read_settings(file)
        length = settings.get("max_seq_length")
        if length is not None and (not isinstance(length, int) or length < 1):
            raise _error(file, f"has the max_seq_length {length!r:.100}")
        return length, bool(settings.get("do_lower_case", False))
    return None, False


def _prompt(folder: Path) -> str:
    """The prompt of a document, or else of every text."""
    file = folder / PROMPTS
    if not file.is_file():
        return ""
    settings = read_settings(file)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise _error(file, "has prompts that are not an object")
    # sentence-transformers writes an empty one where none was set.
    documents = (name for name in _DOCUMENT_PROMPTS if prompts.get(name))
    name = next(documents, settings.get("default_prompt_name"))
    prompt = prompts.get(name) or ""
    if not isinstance(prompt, str):
        raise _error(file, f"has the prompt {prompt!r:.100}, which is not a text")
    return prompt


def _similarity(folder: Path) -> str | None:
    file = folder / PROMPTS
    named = read_settings(file).get("similarity_fn_name") if file.is_file() else None
    return str(named) if named else None


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer behind the pooling.

    Attributes:
        in_features: Dimensions that it takes.
        out_features: Dimensions that it gives.
        bias: Whether it has a bias.
        activation: Name of its activation, a class of torch.nn.
    """

    in_features: int
    out_features: int
    bias: bool
    activation: str


def read_dense(folder: Path) -> DenseLayer:
    """Reads the settings of a dense layer.

    Args:
        folder: Folder of the layer.

    Raises:
        ModelError: A setting is missing, or not known here.
    """
    file = folder / "config.json"
    settings = read_settings(file)
    for name in ("module_input_name", "module_output_name"):
        if settings.get(name) not in (None, _EMBEDDING):
            raise _error(file, f"has the {name} {settings[name]!r:.100}, and no {_EMBEDDING}")
    if settings.get("use_residual"):
        raise _error(file, "has use_residual, which is not known here")
    module, _, activation = str(
        settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    ).rpartition(".")
    if not module.startswith("torch.nn.modules."):
        raise _error(file, f"has an activation_function of its own, {activation[:100]}")
    for name in ("in_features", "out_features"):
        size = settings.get(name)
        if not isinstance(size, int) or size < 1:
            raise _error(file, f"has the {name} {size!r:.100}")
    return DenseLayer(
        settings["in_features"],
        settings["out_features"],
        bool(settings.get("bias", True)),
        activation,
    )


def read_settings(file: Path) -> dict[str, Any]:
    """Reads a JSON object of a model's folder.

    Raises:
        ModelError: The file cannot be read, or holds no object.
    """
    settings: dict[str, Any] = _read(file, dict)
    return settings


def _read(file: Path, kind: type) -> Any:
    try:
        content = parse_json(file.read_bytes())
    except (OSError, DecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _error(file, f"cannot be read ({reason})") from error
    if not isinstance(content, kind):
        raise _error(file, f"holds no JSON {'object' if kind is dict else 'list'}")
    return content


def _error(file: Path, reason: str) -> ModelError:
    return ModelError(f"encoder.model: {file} {reason}")
