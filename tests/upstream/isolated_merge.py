"""Merge toy models with a composed method; the same code runs here and in the copy.

As a program it runs where this project is not importable, and proves that first.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import unittest
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

TASKS = ("one", "two", "three")
# Few steps, and an alpha that suits the toy's short task vectors.
_SHORT = [
    "method.checkpoint_dir=null",
    "method.num_workers=0",
    "method.save_model=false",
    "method.stop_on_collapse=false",  # the last state, not the best
]
RUNS = {
    "awd": ["method.alpha=1e-3", "method.lr=0.1", "method.iterations=50"],
    "awd_with_ties": ["method@method.base=ties_merging", "method.alpha=1e-3"],
    "adamerging": ["method.steps=5", "method.lr=0.01", "method.guard_every=2", *_SHORT],
    "adamerging_task_wise_pp": ["method.steps=5", "method.lr=0.01", *_SHORT],
    "awd_adamerging": ["method.steps=3", "method.disentangle.alpha=1e-3", *_SHORT],
    "tinting": ["method.rounds=3", "method.batch_size=8", *_SHORT],
    "tinting_pp": ["method.rounds=3", "method.batch_size=8", *_SHORT],
}
# Run -> its package here, and its config here.
PACKAGES = {name: name.partition("_")[0] for name in RUNS} | {
    "awd_adamerging": "adamerging"
}
CONFIGS = {name: name.partition("_with")[0] for name in RUNS}


def toy_models() -> dict[str, nn.Module]:
    """A base and one expert per task."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6))
    models = {"_pretrained_": base}
    for task in TASKS:
        models[task] = deepcopy(base)
        for parameter in models[task].parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return models


def toy_adapter(pools, modelpool):
    """Random samples and heads, for the `pools` package of either place."""

    class Toy(pools.PoolAdapter):
        def check_datasets(self, split): ...

        def prepare(self, device): ...

        def dataset(self, task, split):
            generator = torch.Generator().manual_seed(TASKS.index(task))
            return torch.randn(30, 10, generator=generator)

        def encode(self, sample):
            return sample

        def decode(self, stored):
            return stored

        def features(self, module, inputs):
            return module(inputs)

        def heads(self):
            generator = torch.Generator().manual_seed(9)
            weights = {t: torch.randn(5, 6, generator=generator) for t in self.tasks}
            return {t: pools.ClassificationHead(2 * w) for t, w in weights.items()}

    return Toy(modelpool)


def merge(run: str, choice: str, config: Path, core: str) -> dict[str, torch.Tensor]:
    """The merged weights of one run.

    Args:
        run: Its name in RUNS.
        choice: What `method=` selects.
        config: Hydra's config root.
        core: The package that holds `pools`.
    """
    from fusion_bench.modelpool import BaseModelPool
    from fusion_bench.utils import instantiate
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(config), version_base=None):
        job = compose("fabric_model_fusion", overrides=[f"method={choice}", *RUNS[run]])
    algorithm = instantiate(job.method, _recursive_=False)
    modelpool = BaseModelPool(toy_models())
    arguments = [modelpool]
    if PACKAGES[run] != "awd":
        pools = importlib.import_module(f"{core}.pools")
        arguments.append(toy_adapter(pools, modelpool))
    state = algorithm.run(*arguments).state_dict()
    return {f"{run}/{name}": value.clone() for name, value in state.items()}


def prove_isolation(root: Path) -> None:
    """Raise unless FusionBench is the copy and this project cannot be had at all."""
    import fusion_bench

    place = Path(fusion_bench.__file__).resolve()
    assert place.is_relative_to(root.resolve()), place
    for name in ("fusion_plugins", "hydra_plugins.fusion_plugins_searchpath"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported: {sys.path}")
    try:
        importlib.metadata.version("fusion-plugins")
    except importlib.metadata.PackageNotFoundError:
        return
    raise AssertionError("fusion-plugins is installed")


def run_tests(root: Path, homes: dict[str, str]) -> dict[str, dict]:
    """Each method's test in the copy, as FusionBench runs its tests."""
    results = {}
    for name, home in homes.items():
        suite = unittest.defaultTestLoader.discover(root / "tests", f"test_{home}.py")
        outcome = unittest.TextTestRunner(buffer=True, verbosity=0).run(suite)
        problems = [text for _, text in (*outcome.failures, *outcome.errors)]
        results[name] = {"run": outcome.testsRun, "problems": problems}
    return results


def main(root: Path, out: Path, homes: dict[str, str]) -> None:
    torch.set_num_threads(1)
    prove_isolation(root)
    tensors = {}
    for run in RUNS:
        home = homes[PACKAGES[run]]
        core = "fusion_bench.method.adaptive_merging"
        choice = f"{home}/{CONFIGS[run]}"
        tensors |= merge(run, choice, root / "config", core)
    save_file(tensors, out / "merged.safetensors")
    results = run_tests(root, homes)
    (out / "tests.json").write_text(json.dumps(results))
    prove_isolation(root)  # nothing has put it on the path meanwhile


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
