"""`fusion_bench --config-name compare`: one run, many methods."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import signature

from fusion_bench import BaseAlgorithm, auto_register_config
from fusion_bench.programs import FabricModelFusionProgram
from fusion_bench.utils.instantiate_utils import set_print_function_call_permeanent
from lightning.fabric.loggers import TensorBoardLogger
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from ..awd.base_method import check_numbers
from ..common import get_logger
from ..common.folders import check_end
from ..common.options import reject_unknown, require_choice
from ..common.running import one_line_errors, quiet
from ..common.upstream import (
    fabric_config,
    loggers_of,
    modelpool_config,
    set_up,
    taskpool_config,
)
from ..merged.cards import CARD
from ..pools.saving import add_card
from .adding import add_results, check_tasks, read_added
from .cells import Cell, read_seeds, with_choices
from .evaluation import Scores, check_metric, check_task_names, task_names
from .execution import Bench
from .files import as_plain, slug
from .gathering import check_tables, gather, require_report
from .methods import read_baseline, read_methods
from .missing import run_missing
from .plan import Plan, plain_config, resolve_method
from .reports import note_main_scores, tell_loggers
from .results import Comparison
from .store import Results, results_folder
from .tables import TableOptions
from .terminal import terminal_tables

log = get_logger(__name__)
_NOT_GIVEN = ("kwargs", "method")  # of what the programs take


@auto_register_config
class CompareProgram(FabricModelFusionProgram):
    """Measure many methods with many seeds on one model pool and one task pool.

    Args:
        modelpool, taskpool: Configs, loaded once.
        methods, overrides: Rows of the comparison; see :func:`~.methods.read_methods`.
        seeds: One run of every method for each.
        results: The results folder; finished cells in it are not run again.
        add: Results folders of earlier runs whose cells join the tables.
        title: Of tables and report.
        select: How each method's scaling is chosen, with `oracle`; see
            :func:`~.chosen.with_choices`.
        baseline: Row that differences are to; see :func:`~.methods.read_baseline`.
        metric: Main metric; a name, a mapping from task to name, or None to find it.
        retry_failed: Run cells again that failed earlier.
        save_models: Keep every merged model in the results folder.
        published: A setting with published numbers, or such; see docs/recipes.md.
        tables: See :class:`~.tables.TableOptions`.
        settings: Values for other entries of the config to refer to; not read here.
        dry_run: Only list the cells.
        **kwargs: Of FusionBench's own program: fabric, path, print_config, fast_dev_run.

    Raises:
        ValueError: A name, an option or a folder does not fit; before any pool is loaded.
    """

    def __init__(
        self,
        modelpool: DictConfig,
        taskpool: DictConfig,
        methods: object,
        seeds: object = (0,),
        overrides: object = None,
        results: str = "outputs/compare/results",
        add: object = None,
        title: str = "comparison",
        select: str | None = None,
        oracle: bool = False,
        baseline: str | None = None,
        metric: str | Mapping | None = None,
        retry_failed: bool = True,
        save_models: bool = False,
        published: str | Mapping | None = None,
        tables: Mapping | None = None,
        settings: Mapping | None = None,
        dry_run: bool = False,
        **kwargs: object,
    ):
        super().__init__(None, modelpool, taskpool, **kwargs)
        self._further = list(kwargs)
        set_print_function_call_permeanent(kwargs.get("print_function_call", True))

    def plan(self) -> Plan:
        """What there is to do; every mistake in the config shows up here."""
        require_report()
        programs = map(signature, (type(self), FabricModelFusionProgram))
        known = [n for p in programs for n in p.parameters if n not in _NOT_GIVEN]
        reject_unknown("The comparison", self._further, list(dict.fromkeys(known)))
        self.shown = TableOptions.read("tables", as_plain(self.tables or {}))
        for name in ("retry_failed", "save_models", "dry_run", "fast_dev_run"):
            require_choice(name, getattr(self, name), (True, False))
        metric, published = plain_config(self.metric), plain_config(self.published)
        precision = (fabric_config(self) or {}).get("precision")
        listed = read_methods(self.methods, self.overrides)
        methods = with_choices(listed, self.select, self.oracle)
        plan = Plan(
            methods,
            read_seeds(self.seeds),
            Results(results_folder(self.results)),
            surroundings={
                "modelpool": modelpool_config(self),
                "taskpool": taskpool_config(self),
                "path": self.path or {},
                "fast_dev_run": self.fast_dev_run,
            },
            about={
                "title": str(self.title),
                "published": published,
                "baseline": read_baseline(self.baseline, methods),
            },
            settings=[metric, self.fast_dev_run, precision],
        )
        plan.added = read_added(self.add, plan.results)
        check_tasks(plan.added, (plan.results.description() or {}).get("tasks"))
        for row in plan.methods:  # ours refuse wrong values before anything is slow
            if row.is_own:
                set_up(self)(resolve_method(row, plan.surroundings, None))
            else:
                check_numbers(plan.configs[row.label])
        return plan

    def run(self) -> dict:
        """Run what is missing, then write and show the tables.

        Returns:
            ``results``: the folder; ``cells``: how many cells this run was asked for.

        Raises:
            ValueError: A name, an option or a folder does not fit.
            RuntimeError: Every cell failed. Under Hydra, all errors are one line.
        """
        again = "Finished cells are kept; the same command runs the rest."
        with one_line_errors(again), quiet():
            return self._compare()

    def _compare(self) -> dict:
        plan, console = self.plan(), Console()
        done = {"results": str(plan.results.folder), "cells": len(plan.cells)}
        if self.dry_run:
            console.print(*plan.forecast(self.retry_failed))
            return done
        if self.fabric.world_size > 1:
            raise ValueError(
                f"fabric runs {self.fabric.world_size} processes, but cells run in one"
                " each. Use fabric.devices=1 and --multirun for cells side by side."
            )
        plan.results.describe(plan.description)
        self._load_pools(plan)
        for moved in plan.results.retire_changed(plan.identities, plan.shared):
            log.warning("%s: what decides its result has changed; see stale/", moved)
        add_results(plan.results, plan.added, plan.identities, plan.shared)
        self._run_missing(plan)
        comparison = gather(plan.results.folder, self.shown)
        self.show(comparison, plan.results, console)
        settings = {"seeds": as_plain(self.seeds), "methods": plan.configs}
        tell_loggers(self.fabric, comparison, self.shown, settings)
        failed = plan.failed()
        if len(failed) == len(plan.cells):
            raise RuntimeError(
                f"All {len(failed)} cells failed; the first: {failed[0]}"
            )
        if failed:
            console.print(f"{len(failed)} of {len(plan.cells)} cells failed.")
        return done

    def show(self, found: Comparison, results: Results, console: Console) -> None:
        """Print what was found, and where it is."""
        console.print(*terminal_tables(found, console.width, self.shown))
        console.print(f"Results: {results.folder}", soft_wrap=True)

    def _run_missing(self, plan: Plan) -> None:
        missing = [c for c in plan.cells if not plan.is_finished(c, self.retry_failed)]
        if not missing:
            return
        bench = Bench(
            self.modelpool,
            self.taskpool,
            partial(self._build_method, plan),
            plain_config(self.metric),
            str(self.fabric.device),
            partial(self._save_model, plan),
        )
        users = list(self.fabric.loggers)
        run_missing(missing, plan, bench, self.retry_failed)
        loggers_of.put(self.fabric, users)

    def _load_pools(self, plan: Plan) -> None:
        load = "fusion_bench.compat.{0}.load_{0}_from_config".format
        self.modelpool = set_up(self)(modelpool_config(self), load("modelpool"))
        self.taskpool = set_up(self)(taskpool_config(self), load("taskpool"))
        check_end(self, None)
        names = task_names(self.taskpool)
        check_task_names(names or ())
        check_tasks(plan.added, names)
        plan.results.note_tasks(names or [])
        if names is not None:
            check_metric(plain_config(self.metric), names)
            check_tables(plan.results.described(), plan.as_failed(), self.shown)
        plan.note_inputs(self.modelpool, self.taskpool)

    def _build_method(self, plan: Plan, cell: Cell) -> tuple[BaseAlgorithm, DictConfig]:
        """The algorithm as FusionBench sets it up, with files in the cell's own folder."""
        folder = str(plan.work_folder(cell))
        path = {**as_plain(self.path or {}), "output_dir": folder, "log_dir": folder}
        around = {**plan.surroundings, "path": path}
        config = resolve_method(cell.method, around, cell.seed)
        # Where a config does not ask for the program's; save_models is for all methods.
        for option, value in (("seed", cell.seed), ("save_model", False)):
            if option in config and option not in cell.method.overrides:
                config[option] = value
        # FusionBench's learned and continual methods take no other.
        loggers_of.put(self.fabric, [TensorBoardLogger(folder, name="", version="")])
        load = "fusion_bench.compat.method.load_algorithm_from_config"
        self.method = set_up(self)(config, load)
        return self.method, config

    def _save_model(
        self, plan: Plan, cell: Cell, part: str | None, model: nn.Module, scores: Scores
    ) -> None:
        if not self.save_models or cell.method.is_reference:
            return
        name = "merged_model" if part is None else f"merged_model.{slug(part)}"
        folder = plan.work_folder(cell) / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.modelpool.save_model(model, str(folder))
        add_card(folder, model, self.modelpool, self.method)
        if (folder / CARD).is_file():
            note_main_scores(folder, scores)
