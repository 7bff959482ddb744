"""Where the methods of a comparison log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import CSVLogger

from .files import write_json


class CellLogger(CSVLogger):
    """Fabric's, also for methods that log their options."""

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        given = params if isinstance(params, Mapping) else vars(params)
        write_json(Path(self.log_dir) / "hparams.json", dict(given))
