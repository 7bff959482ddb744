"""Compare merging methods on a demo pool: the compare program with these pools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from .build import ensure_pool
from .pool_folder import CONFIGS, pool_format, read_description
from .recipe import DemoRecipe

METHODS = ("pretrained", "experts", "simple_average", "task_arithmetic", "awd")


def run(
    root: Path | None = None,
    seed: int = 0,
    methods: Sequence[str] | None = None,
    out: Path | None = None,
) -> dict:
    """Measure the methods and print their table, as ``--config-name compare`` does.

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
    name = CONFIGS[pool_format(read_description(root))]
    pools = [f"modelpool={name}", f"taskpool={name}"]
    with initialize_config_dir(get_default_config_path(), version_base=None):
        job = compose("compare", overrides=pools)
    results = str(out or Path("outputs", "demo", root.name))
    job.modelpool.root = job.taskpool.root = str(root)
    job.title, job.results = name, results
    # Hydra's command would set these.
    job.path.log_dir, job.path.work_dir = results, "."
    job.methods = list(methods or METHODS)
    return instantiate(job).run()
