"""A pool with other experts is still that pool."""

from copy import deepcopy

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool, CLIPVisionModelPool
from omegaconf import OmegaConf
from torch import nn

from fusion_plugins.pools import with_experts


class OwnPool(BaseModelPool):
    def greeting(self) -> str:
        return f"{len(self)} experts"


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def made(name: str) -> nn.Module:
    return linear({"a": 10.0, "b": 20.0}[name])


@pytest.fixture
def pool() -> OwnPool:
    models = {"_pretrained_": linear(0), "a": linear(1), "b": linear(2)}
    return OwnPool(
        models, test_datasets=OmegaConf.create({"a": {"_target_": "builtins.list"}})
    )


def weights(pool: BaseModelPool) -> dict[str, float]:
    return {n: pool.load_model(n).weight.item() for n in pool.all_model_names}


def test_experts_come_from_the_function_and_the_base_from_the_pool(pool):
    assert weights(with_experts(pool, made)) == {"_pretrained_": 0, "a": 10, "b": 20}
    assert weights(pool) == {"_pretrained_": 0, "a": 1, "b": 2}


def test_the_view_is_an_instance_of_the_pools_class(pool):
    view = with_experts(pool, made)
    assert isinstance(view, OwnPool) and not isinstance(view, CLIPVisionModelPool)
    assert type(view).__name__ == "OwnPool" and type(pool) is OwnPool
    assert view.greeting() == "2 experts"
    assert view.model_names == ["a", "b"] and view.has_pretrained


def test_datasets_are_the_pools(pool):
    view = with_experts(pool, made)
    assert view.test_dataset_names == ["a"] and view.load_test_dataset("a") == []


def test_iterating_gives_the_new_experts(pool):
    view = with_experts(pool, made)
    got = {name: model.weight.item() for name, model in view.named_models()}
    assert got == {"a": 10, "b": 20}
    assert [model.weight.item() for model in view.models()] == [10, 20]


def test_models_held_in_memory_are_handed_out_as_copies(pool):
    view = with_experts(pool, made)
    view.load_model("_pretrained_").weight.data.fill_(99)
    view.load_pretrained_model().weight.data.fill_(99)
    assert view.load_model("_pretrained_").weight.item() == 0
    assert pool.load_model("_pretrained_").weight.item() == 0


def test_every_load_makes_a_new_expert_when_asked_for_and_not_before(pool):
    calls = []

    def counted(name: str) -> nn.Module:
        calls.append(name)
        return made(name)

    view = with_experts(pool, counted)
    assert calls == []
    assert view.load_model("b") is not view.load_model("b")
    assert calls == ["b", "b"]


def test_unknown_models_are_still_unknown(pool):
    with pytest.raises(KeyError, match="'c' not found in model pool"):
        with_experts(pool, made).load_model("c")


@pytest.mark.parametrize("configs", [False, True])
def test_a_model_added_to_a_view_is_in_the_view_alone(pool, configs):
    if configs:  # as a pool has them that Hydra makes
        shape = {"in_features": 1, "out_features": 1, "bias": False}
        config = OmegaConf.create({"_target_": "torch.nn.Linear", **shape})
        pool = OwnPool(OmegaConf.create(dict.fromkeys(["_pretrained_", "a"], config)))
    outer = with_experts(with_experts(pool, made), lambda name: linear(30.0))
    outer.add_model("_merged_", linear(7.0))
    assert outer.has_merged and outer.load_model("_merged_").weight.item() == 7
    assert outer.load_model("a").weight.item() == 30
    assert not pool.has_merged


def test_configs_can_still_be_loaded(pool):
    config = OmegaConf.create(
        {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    )
    assert with_experts(pool, made).load_model(config).weight.shape == (3, 2)


def test_task_vectors_of_the_view_are_of_the_new_experts(pool):
    base, task_vectors = with_experts(
        pool, made
    ).load_pretrained_model_and_task_vectors()
    assert base.weight.item() == 0
    assert [vector["weight"].item() for vector in task_vectors] == [10, 20]


def test_a_view_of_a_view_replaces_again_and_a_copy_of_it_works(pool):
    def halved(name: str) -> nn.Module:
        model = inner.load_model(name)
        with torch.no_grad():
            model.weight /= 2
        return model

    inner = with_experts(pool, made)
    outer = with_experts(inner, halved)
    want = {"_pretrained_": 0, "a": 5, "b": 10}
    assert weights(outer) == weights(deepcopy(outer)) == want
    assert weights(inner) == {"_pretrained_": 0, "a": 10, "b": 20}
