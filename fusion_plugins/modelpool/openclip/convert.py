"""Turn checkpoints into safetensors once, so that nothing is unpickled afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from .checkpoints import encoder_from, head_from, is_head, save_encoder, save_head
from .trust import SAFE_SUFFIX, read, source_metadata


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    model_name: str | None = None,
    trust_pickle: bool = False,
) -> str:
    """Write an encoder or a classification head as safetensors.

    Args:
        source: A state dict or a pickled module.
        target: The new file, ending in ``.safetensors``.
        model_name: The encoder's architecture; needed for a state dict.
        trust_pickle: Read pickled modules.

    Returns:
        ``image encoder`` or ``classification head``.

    Raises:
        ValueError: `target` has another ending or exists, or `source` cannot be read.
    """
    source, target = Path(source), Path(target)
    if target.suffix != SAFE_SUFFIX:
        raise ValueError(f"{target} must end in {SAFE_SUFFIX}.")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists already. Remove it, or choose another name.")
    content, made_from = read(source, trust_pickle), source_metadata(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    if is_head(content.tensors):
        save_head(head_from(content, source), unfinished, made_from)
    else:
        encoder = encoder_from(content, source, model_name)
        save_encoder(encoder, unfinished, made_from)
    os.replace(unfinished, target)
    return "classification head" if is_head(content.tensors) else "image encoder"
