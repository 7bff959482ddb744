"""Pools of model folders: where their files are, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fusion_bench.modelpool import BaseModelPool, CausalLMPool, Seq2SeqLMPool
from fusion_bench.modelpool.causal_lm import CausalLMBackbonePool
from fusion_bench.utils import parse_dtype
from fusion_bench.utils.lazy_state_dict import resolve_checkpoint_path

from ..common.upstream import models_of
from ..modelpool.folders import FolderModelPool, source_of
from .loading import PRETRAINED

# Options of `from_pretrained` that say what class or code a folder is loaded as.
_CODE_OPTIONS = ("trust_remote_code", "attn_implementation")


def model_folders(modelpool: BaseModelPool) -> dict[str, Path]:
    """Model name -> folder of its files, the pretrained model included.

    Models named on a hub are downloaded.

    Raises:
        ValueError: The pool is of another family, or a model is no folder of files.
    """
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
            f" downloaded. {error}"
        ) from error
    return Path(folder, options.get("subfolder") or "")


def pool_dtype(modelpool: BaseModelPool) -> torch.dtype | None:
    """The dtype that the pool loads its models in; None if it does not say."""
    options = _model_options(modelpool)
    named = options.get("torch_dtype", options.get("dtype"))
    return None if named in (None, "auto") else parse_dtype(named)


def _model_options(modelpool: BaseModelPool) -> Mapping:
    return getattr(modelpool, "model_kwargs", None) or {}


def code_options(modelpool: BaseModelPool) -> dict:
    """The pool's options that say what code its folders are loaded with."""
    options = _model_options(modelpool)
    return {name: options[name] for name in _CODE_OPTIONS if name in options}


def tokenizer_of(modelpool: BaseModelPool) -> Any:
    """The pool's tokenizer; None where it names none."""
    if getattr(modelpool, "tokenizer", None) is None:
        return None
    return modelpool.load_tokenizer()


def tokenizer_source(modelpool: BaseModelPool) -> Path | object | None:
    """Where the pool's tokenizer comes from.

    Returns:
        A folder of its files; a tokenizer where the pool describes how to make one; None
        where it names none.
    """
    tokenizer = getattr(modelpool, "tokenizer", None)
    if isinstance(tokenizer, str) and Path(tokenizer).is_dir():
        return Path(tokenizer)
    return tokenizer_of(modelpool)


def local_folder(modelpool: BaseModelPool, name: str) -> Path | None:
    """The folder that loading the model reads as it is; None where it does more."""
    path = models_of(modelpool)[name]
    options = {k: v for k, v in _model_options(modelpool).items() if v is not None}
    plain = type(modelpool) is CausalLMPool and isinstance(path, str)
    if not plain or options or not Path(path).is_dir():
        return None
    return Path(path)
