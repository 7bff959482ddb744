"""A cell's algorithm and its merged model, with files in a folder of the cell's own."""

from __future__ import annotations

from fusion_bench import BaseAlgorithm
from fusion_bench.programs import FabricModelFusionProgram
from lightning.fabric.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from .cells import Cell, resolve_method
from .plan import Plan
from .records import slug


def build_method(
    program: FabricModelFusionProgram, plan: Plan, cell: Cell
) -> tuple[BaseAlgorithm, DictConfig]:
    """The algorithm as the program sets it up, and its resolved config."""
    folder = str(plan.work_folder(cell))
    path = OmegaConf.merge(
        program.path or {}, {"output_dir": folder, "log_dir": folder}
    )
    config = resolve_method(cell.method, plan.surroundings | {"path": path}, cell.seed)
    for option, value in (
        ("seed", cell.seed),  # where a config does not ask for the program's
        ("save_model", False),  # save_models decides for every method
    ):
        if option in config and option not in cell.method.overrides:
            config[option] = value
    program.fabric._loggers = [CSVLogger(folder, name="", version="")]
    method = program._instantiate_and_setup(
        config,
        compat_load_fn="fusion_bench.compat.method.load_algorithm_from_config",
    )
    return method, config


def save_model(
    program: FabricModelFusionProgram,
    plan: Plan,
    cell: Cell,
    part: str | None,
    model: nn.Module,
) -> None:
    """Write a merged model with the model pool's own means."""
    name = "merged_model" if part is None else f"merged_model.{slug(part)}"
    folder = plan.work_folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    program.modelpool.save_model(model, str(folder / name))
