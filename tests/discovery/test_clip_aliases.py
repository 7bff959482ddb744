"""The short CLIP names are FusionBench's own pools, with dataset ids that still exist."""

from copy import deepcopy
from functools import cache
from itertools import product

import pytest
from composing import CONFIG, compose_job, walk
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.utils import instantiate
from omegaconf import DictConfig, OmegaConf

SIZES = {"b32": "base-patch32", "b16": "base-patch16", "l14": "large-patch14"}
TASK_COUNTS = {"TA8": 8, "TALL14": 14, "TALL20": 20}
ALIASES = list(product(SIZES, TASK_COUNTS))
RENAMED = {"mnist", "svhn"}


def expected_dataset(task: str, split: str) -> dict:
    hub_id = {
        "mnist": {"path": "ylecun/mnist"},
        "svhn": {"_args_": ["ufldl-stanford/svhn", "cropped_digits"]},
    }[task]
    return {"_target_": "datasets.load_dataset", **hub_id, "split": split}


def plain(node: DictConfig) -> dict:
    return OmegaConf.to_container(node)


def compose_alias(size: str, tasks: str) -> DictConfig:
    name = f"clip-vit-{size}_{tasks}"
    return compose_job("method=awd", f"modelpool={name}", f"taskpool={name}")


@cache
def pools(size: str, tasks: str) -> tuple[dict, dict]:
    """Model pool and task pool of an alias; nobody changes them."""
    job = compose_alias(size, tasks)
    return plain(job.modelpool), plain(job.taskpool)


@cache
def upstream_pools(size: str, tasks: str) -> tuple[dict, dict]:
    """FusionBench's own; nobody changes them."""
    job = compose_job(
        f"modelpool=CLIPVisionModelPool/clip-vit-{SIZES[size]}_{tasks}",
        f"taskpool=CLIPVisionModelTaskPool/clip-vit-classification_{tasks}",
    )
    return plain(job.modelpool), plain(job.taskpool)


def hub_ids(node: dict) -> list[str]:
    """The dataset names inside a composed pool, fer2013's hidden default aside."""
    calls = [m for m in walk(node) if m.get("_target_") == "datasets.load_dataset"]
    return [call["path"] if "path" in call else call["_args_"][0] for call in calls]


def test_the_tests_name_every_alias() -> None:
    names = {f"clip-vit-{size}_{tasks}.yaml" for size, tasks in ALIASES}
    for group in ("modelpool", "taskpool"):
        assert {p.name for p in (CONFIG / group).glob("clip-vit-*.yaml")} == names


@pytest.mark.parametrize("size, tasks", ALIASES)
def test_both_pools_agree_on_tasks_and_size(size: str, tasks: str) -> None:
    pool, taskpool = pools(size, tasks)
    pretrained = f"openai/clip-vit-{SIZES[size]}"
    experts = {k: v for k, v in pool["models"].items() if k != "_pretrained_"}

    assert len(experts) == TASK_COUNTS[tasks]
    for datasets in (
        pool["train_datasets"],
        pool["test_datasets"],
        taskpool["test_datasets"],
    ):
        assert list(datasets) == list(experts)
    assert taskpool["test_datasets"] == pool["test_datasets"]

    assert pool["models"]["_pretrained_"] == pool["processor"] == pretrained
    for task, expert in experts.items():
        assert expert == f"tanganke/clip-vit-{SIZES[size]}_{task}"
    resolved = compose_alias(size, tasks).taskpool
    assert resolved.base_model == pretrained
    for part in (resolved.clip_model, resolved.processor):
        assert part.pretrained_model_name_or_path == pretrained


@pytest.mark.parametrize("size, tasks", ALIASES)
def test_mnist_and_svhn_have_their_present_ids(size: str, tasks: str) -> None:
    modelpool, taskpool = pools(size, tasks)
    for task in RENAMED:
        train, test = expected_dataset(task, "train"), expected_dataset(task, "test")
        assert modelpool["train_datasets"][task] == train
        assert modelpool["test_datasets"][task] == test
        assert taskpool["test_datasets"][task] == test
    ids = hub_ids(modelpool) + hub_ids(taskpool)
    assert len(ids) >= 3 * (TASK_COUNTS[tasks] - 1)
    # Names without an owner are the hub's old ones.
    assert [name for name in ids if "/" not in name] == []


@pytest.mark.parametrize("size, tasks", ALIASES)
def test_the_model_pool_is_upstreams_but_for_the_ids(size: str, tasks: str) -> None:
    (pool, _), (upstream, _) = pools(size, tasks), upstream_pools(size, tasks)
    for key in ("_target_", "_recursive_", "models"):
        assert pool[key] == upstream[key]
    for split in ("train_datasets", "test_datasets"):
        ours, theirs = pool[split], upstream[split]
        assert list(ours) == list(theirs)
        for task in set(ours) - RENAMED:
            assert ours[task] == theirs[task]


@pytest.mark.parametrize("tasks", TASK_COUNTS)
def test_the_task_pool_is_upstreams_but_for_ids_and_class(tasks: str) -> None:
    ours = deepcopy(pools("b32", tasks)[1])
    theirs = deepcopy(upstream_pools("b32", tasks)[1])
    for pool in (ours, theirs):
        for task in RENAMED:
            del pool["test_datasets"][task]
    assert ours.pop("_target_") == "fusion_plugins.CLIPTaskPool"
    assert theirs.pop("_target_") == "fusion_bench.taskpool.CLIPVisionModelTaskPool"
    assert ours == theirs


def test_fusion_bench_builds_both_pools() -> None:
    job = compose_alias("l14", "TALL20")
    modelpool, taskpool = instantiate(job.modelpool), instantiate(job.taskpool)
    assert type(modelpool).__name__ == "CLIPVisionModelPool"
    assert type(taskpool).__name__ == "CLIPTaskPool"
    assert isinstance(taskpool, CLIPVisionModelTaskPool)
    assert modelpool.has_pretrained
    assert len(modelpool.model_names) == 20
