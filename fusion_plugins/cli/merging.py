"""FusionBench's merging program, printing what a person reads.

The `fusion_bench` command runs it in place of FusionBench's own where the method, the model
pool or the task pool is one of ours (see hydra_plugins/fusion_plugins_searchpath.py). What
it does is the same, and so are its files; it prints a table instead of a configuration
tree, call boxes and a report in JSON. ``+verbose=true`` brings all of that back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fusion_bench.programs import FabricModelFusionProgram
from fusion_bench.utils.instantiate_utils import set_print_function_call_permeanent
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from torch import nn

from ..awd.base_method import check_numbers
from ..common.folders import claimed
from ..common.loggers import choices, log_summary, prepare_loggers
from ..common.options import plain
from ..common.running import one_line_errors, quiet
from ..common.upstream import print_report, taskpool_config
from ..compare.reports import note_main_scores, report_scores, report_table, sweep_table
from ..pools.clip_tasks import registered_tasks
from ..pools.saving import OwnFolders, add_card, whole_clip

_AGAIN = (
    "Start the same command again: a learned merge continues at its newest checkpoint"
    " (method.checkpoint_dir)."
)
_THEIRS = "fusion_bench.programs.FabricModelFusionProgram"
_OURS = f"{__name__}.MergingProgram"


def prepared(config: DictConfig) -> DictConfig:
    """The command's config for our program, unless the user wants FusionBench's."""
    with open_dict(config), one_line_errors(_AGAIN):
        if config._target_ == _THEIRS and _job().mode == RunMode.MULTIRUN:
            _keep_apart(config)
        if config.get("fabric"):
            prepare_loggers(config.fabric)
        if config.pop("verbose", False):
            return config
    if config._target_ == _THEIRS:
        config._target_ = _OURS
    asked = [word.partition("=")[0] for word in _job().overrides.task]
    for option in ("print_config", "print_function_call"):
        config[option] = bool(config[option]) and option in asked
    set_print_function_call_permeanent(config.print_function_call)
    return config


def _keep_apart(config: DictConfig) -> None:
    """Give a job of a sweep a folder of its own; refuse what all jobs would write to.

    A sweep has one time, and folders are named by it.
    """
    given: Any = OmegaConf.to_container(config)
    number = _job().job.num
    if number and "${now:" in str((given.get("path") or {}).get("log_dir")):
        config.path.log_dir = f"{config.path.log_dir}-{number + 1}"
    swept = _swept()
    for option in ("merged_model_save_path", "report_save_path"):
        path = str(given.get(option) or "{log_dir}")
        same = not any(part in path for part in ("${", "{log_dir}"))
        if same and swept and option not in swept:
            apart = "-${hydra:job.num}".join(os.path.splitext(path))
            raise ValueError(
                f"{option}={path} is the same in all jobs of the sweep, each of which"
                f" would write over the last one's. Give '{option}={apart}'."
            )


def _swept() -> set[str]:
    """What differs between a sweep's jobs; empty where Hydra does not say."""
    noted = Path(_job().sweep.dir) / "multirun.yaml"
    if not noted.is_file():
        return set()
    words = OmegaConf.load(noted).hydra.overrides.task
    found = OverridesParser.create().parse_overrides(list(words))
    params = _job().sweeper.get("params") or {}
    return {*params, *(o.key_or_group for o in found if o.is_sweep_override())}


class MergingProgram(FabricModelFusionProgram):
    """Merge, save, evaluate; options and files are FusionBench's."""

    merged_model_save_path: str | Path | None
    merged_model_save_kwargs: Mapping[str, Any] | None

    def run(self) -> dict[str, Any]:
        """Run it all.

        Returns:
            ``merged_model``, and ``report``, None where nothing was evaluated.
        """
        # A sweep's jobs share one process: what one registers is not the next one's.
        with (
            one_line_errors(_AGAIN),
            quiet(),
            registered_tasks(),
            self._table_instead(),
        ):
            parts = [f"{group}={name}" for group, name in choices().items()]
            _say(f"Merging: {' '.join(parts)}" if parts else "Merging.")
            check_numbers(plain(self._method))
            result = super().run()
            self._say_what_is_kept()
            settings = {"seed": self.seed, "options": plain(self._method)}
            scores = _scalars(result["report"])
            log_summary(self.fabric, scores, {**choices(), **settings})
        return result

    def save_merged_model(self, merged_model: nn.Module) -> None:
        """As FusionBench does, with a card; of own folders also without a path.

        Learned and streamed merges have saved their model already.

        ``merged_model_save_kwargs.whole=true`` saves a CLIP with its text tower.
        """
        options = dict(self.merged_model_save_kwargs or {})
        whole = options.pop("whole", False)
        self.merged_model_save_kwargs = options
        if self.merged_model_save_path is None and not whole:
            self.merged_model_save_path = getattr(self.method, "saved_model", None)
            if self.merged_model_save_path is not None:
                return
        folder = self._folder
        own = isinstance(self.modelpool, OwnFolders) and folder is not None
        if self.merged_model_save_path is None and own:
            self.merged_model_save_path = "{log_dir}/merged_model"
        if self.merged_model_save_path is None:  # `_say_what_is_kept` speaks
            return
        path = str(self.merged_model_save_path)
        if "{log_dir}" in path and folder is not None:  # which another run may share
            mine = claimed(Path(folder).absolute(), self.fabric)
            self.merged_model_save_path = path.replace("{log_dir}", str(mine))
        super().save_merged_model(
            whole_clip(merged_model, self.modelpool) if whole else merged_model
        )
        add_card(self._saved, merged_model, self.modelpool, self.method)

    @property
    def _folder(self) -> str | None:
        """Of the run: the first logger's, or without any the program's."""
        return self.log_dir or (self.path or {}).get("log_dir")

    @property
    def _saved(self) -> Path:
        """The saved model's file or folder."""
        return Path(str(self.merged_model_save_path))

    @contextmanager
    def _table_instead(self) -> Iterator[None]:
        """Where FusionBench prints the report in JSON."""
        module = import_module(print_report.owner)
        theirs = print_report(module)

        def show(report: Any, **options: Any) -> None:
            if not self._show(report):
                theirs(report, **options)

        print_report.put(module, show)
        try:
            yield
        finally:
            print_report.put(module, theirs)

    def _show(self, report: Any) -> bool:
        """Print a report as a table; False if it is of another kind."""
        scores = report_scores(report)
        if scores is None:  # of FusionBench's dummy task pool
            return isinstance(report, Mapping) and set(report) == {"model_info"}
        if self.merged_model_save_path is not None and self._saved.is_dir():
            note_main_scores(self._saved, scores)
        in_sweep = HydraConfig.initialized() and _job().mode == RunMode.MULTIRUN
        table = (
            sweep_table(_job(), scores) if in_sweep else report_table(report, scores)
        )
        Console().print(table)
        return True

    def _say_what_is_kept(self) -> None:
        if self._folder is not None:
            _say(f"Results: {self._folder}")
        if self.merged_model_save_path is not None:
            _say(f"Merged model: {self._saved}")
        else:
            _say(
                "The merged model is not saved; merged_model_save_path=FOLDER saves it."
            )
        target = str((taskpool_config(self) or {}).get("_target_", "DummyTaskPool"))
        if target.endswith("DummyTaskPool"):
            own = isinstance(self.modelpool, OwnFolders)
            name = "folders with modelpool.data" if own else "NAME, such as demo,"
            _say(f"Nothing was evaluated; taskpool={name} does that.")


def _job() -> Any:
    """Hydra's own configuration of this job."""
    return HydraConfig.get()


def _scalars(report: Any) -> dict[str, float]:
    """Every number of every task and the means; none where nothing was evaluated."""
    scores = report_scores(report)
    tasks = {} if scores is None else {"average": scores.average(), **scores.tasks}
    return {
        f"{task}/{name}": value
        for task, numbers in tasks.items()
        for name, value in numbers.items()
    }


def _say(text: str) -> None:
    Console(highlight=False, markup=False).print(text, soft_wrap=True)
