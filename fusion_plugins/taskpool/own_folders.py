"""Task pools of the user's own folders and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ..common.folders import require_paths
from ..common.options import require_integer
from ..pools.loading import PRETRAINED
from ..pools.model_files import from_pretrained
from ..pools.own_folders import data_configs, is_clip, register_data
from .clip import CLIPTaskPool
from .sequence_classification import SequenceClassificationTaskPool


def folder_taskpool(
    models: Mapping[str, str],
    data: Mapping[str, str],
    templates: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 64,
) -> Any:
    """The accuracy on every expert's data.

    Args:
        models: As for :func:`~fusion_plugins.pools.own_folders.folder_modelpool`.
        data: Expert -> its samples; see :func:`~fusion_plugins.pools.own_folders.read_data`.
        templates: As for the model pool.
        batch_size: Samples per forward.

    Raises:
        ValueError: As for the model pool, or there is no data.
    """
    models, data = require_paths("models", models), require_paths("data", data)
    require_integer("batch_size", batch_size, 1)
    base, tests = models.get(PRETRAINED, ""), data_configs(data)
    if is_clip(base):
        register_data(data, templates)
        loader = OmegaConf.create({"batch_size": batch_size, "num_workers": 0})
        return CLIPTaskPool(
            tests, processor=base, clip_model=base, dataloader_kwargs=loader
        )
    return SequenceClassificationTaskPool(
        tests,
        tokenizer=OmegaConf.create(from_pretrained("transformers.AutoTokenizer", base)),
        batch_size=batch_size,
    )
