"""A model pool of plain HuggingFace model folders, for use without any config."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import transformers
from fusion_bench.modelpool import BaseModelPool
from torch import nn

# Architectures of our own -> where they are defined.
_OWN = {"OpenCLIPImageEncoder": ".openclip"}


class FolderModelPool(BaseModelPool):
    """Models given as folder paths; each loads as the class its ``config.json`` names.

    Those are transformers' classes, and our image encoder of OpenCLIP pools.
    """

    def load_model(self, model_name_or_config: str, *args, **kwargs) -> nn.Module:
        config = self._models.get(model_name_or_config)
        if not isinstance(config, str):
            return super().load_model(model_name_or_config, *args, **kwargs)
        return _model_class(Path(config)).from_pretrained(config, *args, **kwargs)


def _model_class(folder: Path):
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{folder} is not a HuggingFace model folder: it has no config.json. Save the"
            " model with model.save_pretrained(folder), or pass modules instead."
        )
    names = json.loads(config_file.read_text()).get("architectures") or []
    for name in names:
        if name in _OWN:
            return getattr(import_module(_OWN[name], __package__), name)
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise ValueError(
        f"{config_file} names the architectures {names}, none of which transformers"
        f" {transformers.__version__} has. Pass modules instead of folders."
    )
