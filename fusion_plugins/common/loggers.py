"""What a run was and what it found, for the loggers that the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import pandas as pd


def prepare_loggers(fabric: DictConfig) -> None:
    """Give Fabric's config the loggers that the user named as Fabric takes them."""
    given = fabric.get("loggers")
    several = OmegaConf.is_list(given)
    named = list(given) if several else [given]
    if given is None or given is False or not named:
        fabric.loggers = None
    elif not all(
        OmegaConf.is_dict(logger) and "_target_" in logger for logger in named
    ):
        raise ValueError(
            f"fabric.loggers is {given!r}, expected null for none, or the config of a"
            " logger. fabric/loggers=NAME takes one of FusionBench's: tensorboard_logger,"
            " csv_logger, wandb_logger."
        )
    elif several:
        fabric._convert_ = "all"  # Fabric takes any other list for one logger


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
