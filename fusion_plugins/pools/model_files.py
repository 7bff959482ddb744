"""Transformers models of a pool: where their files are, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool import BaseModelPool, CausalLMPool, Seq2SeqLMPool
from fusion_bench.modelpool.causal_lm import CausalLMBackbonePool
from fusion_bench.utils import instantiate, parse_dtype
from fusion_bench.utils.lazy_state_dict import resolve_checkpoint_path
from hydra.errors import InstantiationException

from ..common.upstream import model_options_of, models_of, tokenizer_of
from ..modelpool.folders import FolderModelPool, source_of
from ..task_vectors.files import UNREADABLE, one_line
from .family import PRETRAINED
from .tokens import require_words

_FORM = {"_target_", "pretrained_model_name_or_path"}
_NOT_LOADED: tuple[type[Exception], ...] = (
    *(*UNREADABLE, InstantiationException),
    AttributeError,  # what tokenizers of transformers 4 raise without their files
)
# Options of `from_pretrained` that say what class or code a folder is loaded as.
_CODE_OPTIONS = ("trust_remote_code", "attn_implementation")


def from_pretrained(kind: str, folder: str) -> dict[str, str]:
    """The config of what a transformers class loads from a folder."""
    target = {"_target_": f"{kind}.from_pretrained"}
    return target | {"pretrained_model_name_or_path": folder}


def is_from_pretrained(config: object) -> bool:
    """Whether a pool's model config asks a transformers class for a folder or hub name."""
    if not isinstance(config, Mapping):
        return False
    target = str(config.get("_target_", ""))
    return target.startswith("transformers.") and target.endswith(".from_pretrained")


def local_folder(
    modelpool: BaseModelPool, name: str, kind: type[BaseModelPool]
) -> Path | None:
    """The folder that a model is loaded from as it is; None where that is not certain.

    The pool must load as a `kind` does; subclasses may do otherwise.
    """
    config = models_of(modelpool)[name]
    options = {k: v for k, v in _model_options(modelpool).items() if v is not None}
    if type(modelpool).load_model is not kind.load_model or options:
        return None  # such as a dtype to convert to
    if is_from_pretrained(config) and set(config) == _FORM:
        config = config["pretrained_model_name_or_path"]
    return Path(config) if isinstance(config, str) and Path(config).is_dir() else None


def model_folders(modelpool: BaseModelPool) -> dict[str, Path]:
    """Model name -> folder of its files, maybe downloaded; or ValueError."""
    known = isinstance(modelpool, (CausalLMPool, FolderModelPool, Seq2SeqLMPool))
    if not known or isinstance(modelpool, CausalLMBackbonePool):
        raise ValueError(
            "Merging from files to files needs a CausalLMPool, a Seq2SeqLMPool, a"
            f" FolderModelPool or a dict of folders, got a {type(modelpool).__name__}. For"
            " other pools use method=awd."
        )
    return {
        name: _folder(name, models_of(modelpool)[name])
        for name in (PRETRAINED, *modelpool.model_names)
    }


def is_causal(modelpool: BaseModelPool) -> bool:
    """Whether the pool loads its folders as causal language models, whatever they say."""
    return isinstance(modelpool, CausalLMPool)


def _folder(name: str, config: Any) -> Path:
    path, options = source_of(config), config if isinstance(config, Mapping) else {}
    if path is None:
        raise ValueError(
            f"model '{name}' is {config!r}, expected a folder, a hub name, or a mapping"
            " with pretrained_model_name_or_path."
        )
    try:
        folder = resolve_checkpoint_path(path, hf_revision=options.get("revision"))
    except FileNotFoundError as error:
        raise ValueError(
            f"model '{name}': {path} is neither a folder nor a model that can be"
            f" downloaded. {one_line(error)[:300]}"
        ) from error
    return Path(folder, options.get("subfolder") or "")


def pool_dtype(modelpool: BaseModelPool) -> torch.dtype | None:
    """The dtype that the pool loads its models in; None if it does not say."""
    options = _model_options(modelpool)
    named = options.get("torch_dtype", options.get("dtype"))
    return None if named in (None, "auto") else parse_dtype(named)


def _model_options(modelpool: BaseModelPool) -> Mapping:
    kept = model_options_of(modelpool, None)
    return kept or getattr(modelpool, "model_kwargs", None) or {}


def code_options(modelpool: BaseModelPool) -> dict:
    """The pool's options that say what code its folders are loaded with."""
    options = _model_options(modelpool)
    return {name: options[name] for name in _CODE_OPTIONS if name in options}


def tokenizer_source(modelpool: BaseModelPool) -> Path | object | None:
    """A folder of the pool's tokenizer, else the tokenizer; None where it names none."""
    given = given_tokenizer(modelpool)
    if isinstance(given, str) and Path(given).is_dir():
        return Path(given)
    return None if given is None else load_tokenizer(modelpool)


def given_tokenizer(modelpool: BaseModelPool) -> Any:
    """What the pool says of its tokenizer; None where it names none."""
    kept = tokenizer_of(modelpool, None)
    return getattr(modelpool, "tokenizer", None) if kept is None else kept


def load_tokenizer(modelpool: BaseModelPool) -> Any:
    """The pool's tokenizer, from its config, a folder or hub name, or an object.

    FusionBench's own ``Seq2SeqLMPool.load_tokenizer`` fails in 0.2.33.

    Raises:
        ValueError: There is none, it cannot be loaded, or it knows no words.
    """
    given = given_tokenizer(modelpool)
    if given is None:
        raise ValueError(
            f"The {type(modelpool).__name__} has no tokenizer to prepare text with. Set"
            " modelpool.tokenizer={_target_: transformers.AutoTokenizer.from_pretrained,"
            " pretrained_model_name_or_path: <folder or hub name>}."
        )
    if not isinstance(given, (str, Mapping)):
        return given
    source = source_of(given) or given
    try:
        tokenizer = _load_tokenizer(given)
    except _NOT_LOADED as error:
        reason = one_line(error.__cause__ or error)[:200]
        raise ValueError(
            f"The tokenizer {source} cannot be loaded ({reason}). Save the models' own"
            " there with tokenizer.save_pretrained(folder), or name another one."
        ) from error
    require_words(tokenizer, source)
    return tokenizer


def _load_tokenizer(given: Any) -> Any:
    if isinstance(given, Mapping):
        return instantiate(given)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(given)
