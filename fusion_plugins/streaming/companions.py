"""What a model folder holds beside its weights: config, tokenizer, code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)
_BESIDE_WEIGHTS = (*_TOKENIZER, "config.json", "generation_config.json", "*.py")


def copy_companions(
    base: Path, output: Path, dtype: torch.dtype | None, tokenizer=None
) -> None:
    """Make a folder of merged weights a model that loads by itself.

    Args:
        base: The pretrained model's folder; its config describes the merged model.
        output: Folder of the merged weights.
        dtype: Of the merged weights, for the config; None leaves it as in the base.
        tokenizer: A folder to take the tokenizer from, a tokenizer, or None for the
            base's.
    """
    own = isinstance(tokenizer, Path)
    beside = ("config.json", "generation_config.json", "*.py")
    _copy(base, output, beside if own else _BESIDE_WEIGHTS)
    if own:
        _copy(tokenizer, output, _TOKENIZER)
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(output))
    if dtype is not None:
        _set_dtype(output / "config.json", dtype)


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns):
            shutil.copyfile(file, target / file.name)


def _set_dtype(file: Path, dtype: torch.dtype) -> None:
    config = json.loads(file.read_text())
    name = str(dtype).removeprefix("torch.")
    # transformers renamed the key; older ones know only the first.
    names = [key for key in ("torch_dtype", "dtype") if key in config]
    config |= dict.fromkeys(names or ["torch_dtype"], name)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(partial, file)
