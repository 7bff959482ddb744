"""What a run was and what it found, for the loggers that the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.loggers import TensorBoardLogger

if TYPE_CHECKING:
    import pandas as pd


def choices() -> dict[str, str]:
    """The names that the command line gave to method and pools; none outside Hydra."""
    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices
    return {n: chosen[n] for n in ("method", "modelpool", "taskpool") if chosen.get(n)}


def log_summary(
    fabric: Any, numbers: Mapping[str, float], settings: Mapping[str, Any]
) -> None:
    """Give a run's last numbers and its settings to every logger.

    Some loggers write only when they are told, and some know no settings.
    """
    for logger in fabric.loggers:
        if isinstance(logger, TensorBoardLogger):  # it pairs the two on one page
            logger.log_hyperparams(dict(settings), dict(numbers))
        else:
            logger.log_metrics(dict(numbers))
            with suppress(NotImplementedError):  # Fabric's own CSVLogger
                logger.log_hyperparams(dict(settings))
        logger.save()


def log_table(fabric: Any, name: str, frame: pd.DataFrame, markdown: str) -> None:
    """Give a table to the loggers that show tables: W&B's, and as text TensorBoard."""
    for logger in fabric.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, markdown)
        elif hasattr(logger, "log_table"):
            logger.log_table(name, dataframe=frame)
        logger.save()
