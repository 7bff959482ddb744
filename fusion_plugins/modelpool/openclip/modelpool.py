"""FusionBench's OpenCLIP model pool: any Python, no downloads, pickles only on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.models.open_clip import ClassificationHead, ImageEncoder

from ...common.compat import import_upstream
from ...common.upstream import (
    heads_of,
    models_of,
    saved_options,
    test_processor_of,
    train_processor_of,
)
from .checkpoints import load_encoder, load_head
from .encoder import WEIGHTS_FILE
from .trust import SAFE_SUFFIX, converted

_upstream = import_upstream("fusion_bench.modelpool.openclip_vision.modelpool")
OpenCLIPVisionModelPool: Any = _upstream.OpenCLIPVisionModelPool
_PATH_KEYS = ("state_dict_path", "pickle_path")  # upstream's; either may be any kind


class OpenCLIPModelPool(OpenCLIPVisionModelPool):
    """Image encoders and classification heads of OpenCLIP.

    A model is given as upstream allows: a path, ``{model_name, state_dict_path}``,
    ``{model_name, pickle_path}``, a module, or a config with ``_target_``. Paths may also
    be ``.safetensors`` files or folders of
    :class:`~fusion_plugins.modelpool.openclip.encoder.OpenCLIPImageEncoder`; a safetensors file of
    the same name beside a ``.pt`` file is read in its place.

    Args:
        models: Name -> model, with the pretrained one under ``_pretrained_``.
        classification_heads: Task -> path, module, or config with ``_target_``.
        trust_pickle: Read files that are pickles of whole modules. They are read without
            running code they name, but only trust what you know the source of.
        **kwargs: Datasets; see upstream's pool.

    Raises:
        ValueError: `trust_pickle` is not true or false.
    """

    _config_mapping = saved_options(OpenCLIPVisionModelPool) | {
        heads_of.name: "classification_heads",
        "trust_pickle": "trust_pickle",
    }

    def __init__(
        self,
        models: Any,
        classification_heads: Mapping | None = None,
        trust_pickle: bool = False,
        **kwargs: Any,
    ):
        if not isinstance(trust_pickle, bool):
            raise ValueError(
                f"trust_pickle is {trust_pickle!r}, expected true or false."
            )
        super().__init__(models, classification_heads=classification_heads, **kwargs)
        self.trust_pickle = trust_pickle

    def load_model(
        self, model_name_or_config: Any, *args: Any, **kwargs: Any
    ) -> ImageEncoder:
        """A model by its name in the pool, or by a config in one of the forms above.

        Raises:
            ValueError: The file is missing, not trusted, or does not fit.
        """
        path, model_name = self._path_and_name(model_name_or_config)
        if path is None:
            return super().load_model(model_name_or_config, *args, **kwargs)
        encoder = load_encoder(path, model_name, self.trust_pickle)
        for processor, own in (
            (train_processor_of, encoder.train_preprocess),
            (test_processor_of, encoder.val_preprocess),
        ):
            if processor(self) is None:
                processor.put(self, own)
        return encoder

    def load_classification_head(
        self, model_name_or_config: Any, *args: Any, **kwargs: Any
    ) -> ClassificationHead:
        """A task's head, by the task's name or by a config.

        Raises:
            ValueError: The pool has no heads, or the file is missing or not trusted.
        """
        heads = heads_of(self)
        config = model_name_or_config
        if heads is not None and isinstance(config, str) and config in heads:
            config = heads[config]
        if heads is not None and isinstance(config, str):
            return load_head(config, self.trust_pickle)
        return super().load_classification_head(model_name_or_config, *args, **kwargs)

    def save_model(self, model: Any, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a folder if the model knows how; else its state dict, as upstream."""
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(path)
        else:
            super().save_model(model, path, *args, **kwargs)

    def safetensors_of(self, name: str) -> Path | None:
        """The safetensors file or folder that a model is read from, if it is one."""
        path, _ = self._path_and_name(name)
        if path is None:
            return None
        source = converted(path)
        is_safe = source.suffix == SAFE_SUFFIX and source.is_file()
        return source if is_safe or (source / WEIGHTS_FILE).is_file() else None

    def _path_and_name(self, config: Any) -> tuple[str | None, str | None]:
        """Where a model is and what its architecture is called, if it is given by path."""
        if isinstance(config, str):
            config = models_of(self).get(config, config)
        if isinstance(config, str):
            return config, None
        if isinstance(config, Mapping) and len(config) == 2 and "model_name" in config:
            for key in _PATH_KEYS:
                if key in config:
                    return config[key], config["model_name"]
        return None, None
