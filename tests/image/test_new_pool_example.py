"""The example of the guide on new pools does what the guide says."""

import importlib.util
from pathlib import Path

import pytest
import torch

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm, TintingAlgorithm
from fusion_plugins.pools import family as families

DOCS = Path(__file__).resolve().parents[2] / "docs"
TASKS = {"smoke": 2, "motion": 4}
QUIET = {"save_model": False, "checkpoint_dir": None, "num_workers": 0}
QUIET |= {"guard_every": 2, "guard_samples": 8, "batch_size": 8, "seed": 0}


@pytest.fixture(scope="module")
def example():
    families.import_families()
    known = dict(families.ADAPTERS)
    path = DOCS / "examples" / "new_pool.py"
    spec = importlib.util.spec_from_file_location("new_pool_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    families.ADAPTERS.clear()
    families.ADAPTERS.update(known)


@pytest.fixture
def pool(example):
    torch.manual_seed(0)
    models = {"_pretrained_": example.SensorNet(3)}
    trunk = models["_pretrained_"].trunk.state_dict()
    for task, classes in TASKS.items():
        models[task] = example.SensorNet(classes)
        models[task].trunk.load_state_dict(trunk)
        for parameter in models[task].trunk.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    readings = {task: torch.randn(20, 16).tolist() for task in TASKS}
    return example.SensorPool(models, readings)


@pytest.mark.parametrize(
    "algorithm",
    [
        AWDAlgorithm(),
        AdaMergingAlgorithm(steps=2, lr=0.1, **QUIET),
        TintingAlgorithm(rounds=2, **QUIET),
    ],
    ids=["awd", "adamerging", "tinting"],
)
def test_every_method_takes_the_pool(pool, algorithm):
    merged = algorithm.run(pool)
    for task, classes in TASKS.items():
        merged.set_task(task)
        logits = merged(torch.randn(4, 16))
        assert logits.shape == (4, classes)
    if not isinstance(algorithm, TintingAlgorithm):
        for task in TASKS:
            merged.set_task(task)
            head = pool.load_model(task).output
            assert torch.equal(merged.trunk.output.weight, head.weight)


def test_the_example_raises_what_it_says(pool):
    del pool.readings["smoke"]
    with pytest.raises(ValueError, match=r"no readings for \['smoke'\]"):
        AdaMergingAlgorithm(steps=1, **QUIET).run(pool)


def test_the_guide_names_what_there_is():
    from fusion_plugins.pools import PoolAdapter
    from fusion_plugins.pools.own_heads import OwnHeadsAdapter

    guide = (DOCS / "guides" / "new_pool.md").read_text(encoding="utf-8")
    for name in ("adopt", "files", "head_site", "load_head", "save_model", "decode"):
        assert f"`{name}(" in guide and hasattr(PoolAdapter, name)
    for name in ("check_datasets", "dataset", "prepare", "encode", "features", "heads"):
        assert f"`{name}(" in guide and hasattr(PoolAdapter, name)
    assert hasattr(OwnHeadsAdapter, "outputs") and "`outputs(" in guide
