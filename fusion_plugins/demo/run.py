"""Compare merging methods on a demo pool: the compare program with these pools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from ..compare.columns import SAME
from ..compare.program import CompareProgram
from ..compare.results import Comparison
from ..compare.store import Results
from ..compare.tables import TableOptions, protocol
from ..compare.terminal import terminal_tables
from .build import ensure_pool
from .image_build import one_thread
from .pool_folder import CONFIGS, pool_format, read_description
from .recipe import DemoRecipe

# As in `methods` of the compare config, with the fast schedules.
METHODS: tuple[str | dict, ...] = (
    "pretrained",
    "experts",
    "simple_average",
    "task_arithmetic",
    "awd",
    {"adamerging": {"preset": "fast"}},
    {"tinting_pp": {"preset": "fast"}},
)
_PLAIN = "simple_average"


class DemoComparison(CompareProgram):
    """The compare program that shows one table and says what is in it."""

    def show(self, found: Comparison, results: Results, console: Console) -> None:
        """Print the results, a sentence about them and where the report is."""
        shown = TableOptions(columns=["average", "tasks"])
        console.print(*terminal_tables(found, console.width, shown)[:-1])
        notes = protocol(found)[0]
        if found.baseline is not None:
            notes += f" {SAME}: not distinguishable from {found.baseline.label}."
        console.print(notes, markup=False, highlight=False)
        spreads = {row.method: found.average(row) for row in found.finished}
        finite = {name: 100 * s.mean for name, s in spreads.items() if s and s.finite}
        console.print(summary(finite), highlight=False)
        report = str(results.folder / "report.html")
        console.print(report, soft_wrap=True, markup=False, highlight=False)


def summary(averages: Mapping[str, float]) -> str:
    """One sentence on the averages (percent): what won, and what lost to averaging."""
    references = {"pretrained": "the pretrained model's", "experts": "the experts'"}
    merged = {k: v for k, v in averages.items() if k not in references}
    if not merged:
        return "No merged model was measured."
    best = max(merged, key=merged.__getitem__)
    text = f"{best} merges best: {merged[best]:.1f} on average"
    given = [f"{w} {averages[k]:.1f}" for k, w in references.items() if k in averages]
    text += f", against {' and '.join(given)}" if given else ""
    plain = merged.get(_PLAIN, 0.0)
    lost = [f"{name} ({mean:.1f})" for name, mean in merged.items() if mean < plain]
    if lost:
        text += f"; worse than {_PLAIN} ({plain:.1f}): {', '.join(lost)}"
    return f"{text}."


def run(
    root: Path | None = None,
    seed: int = 0,
    methods: Sequence[str] | None = None,
    out: Path | None = None,
) -> dict:
    """Measure the methods and print their table.

    torch computes with one thread unless ``OMP_NUM_THREADS`` is set.

    Args:
        root: A pool of any kind; None uses the built-in CLIP pool, built on first use.
        seed: Seed of the built-in pool.
        methods: Names for the compare program; None takes `METHODS`.
        out: The results folder (default: ``outputs/demo/`` and the pool's name).

    Returns:
        What the compare program returns.

    Raises:
        ValueError: `root` is no pool, or a method is unknown.
    """
    root = ensure_pool(DemoRecipe(seed=seed)) if root is None else root.absolute()
    program = instantiate(_job(root, list(methods or METHODS), out))
    with nullcontext() if "OMP_NUM_THREADS" in os.environ else one_thread():
        count = torch.get_num_threads()
        said = f"Comparing with {count} thread(s); OMP_NUM_THREADS sets their number."
        Console().print(said, highlight=False)
        return program.run()


def _job(root: Path, methods: list, out: Path | None) -> DictConfig:
    name = CONFIGS[pool_format(read_description(root))]
    pools = [f"modelpool={name}", f"taskpool={name}"]
    with initialize_config_dir(get_default_config_path(), version_base=None):
        job = compose("compare", overrides=pools)
    results = str(out or Path("outputs", "demo", root.name))
    job._target_ = "fusion_plugins.demo.run.DemoComparison"
    job.modelpool.root = job.taskpool.root = str(root)
    job.title, job.results = name, results
    # Hydra's command would set these.
    job.path.log_dir, job.path.work_dir = results, "."
    job.methods = methods
    return job
