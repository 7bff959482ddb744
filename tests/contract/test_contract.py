"""What every algorithm class of the package promises, whatever it does.

A new class needs one line in `CASES`.
"""

import inspect
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path

import fusion_bench
import pytest
import torch
from fusion_bench import BaseAlgorithm
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from lightning import seed_everything
from omegaconf import OmegaConf
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fusion_plugins
from fusion_plugins.pools import as_modelpool


@dataclass(frozen=True)
class Case:
    """How to run a class quickly: the fixture that is its pool, and its options."""

    pool: str
    options: dict = field(default_factory=dict)


# No files, no extra passes: what remains is the method.
LEARNED = {"max_samples": 16, "guard_every": 0, "guard_samples": 8}
LEARNED |= {"checkpoint_dir": None, "save_model": False, "batch_size": 8}
CASES = {
    "AWDAlgorithm": Case("dict_pool", {"alpha": 1e-3, "lr": 0.1, "iterations": 20}),
    "StreamingAWDAlgorithm": Case(
        "language_folders",
        {"output": "merged", "alpha": 1e-3, "lr": 0.1, "iterations": 20},
    ),
    "AdaMergingAlgorithm": Case("tiny_modelpool", LEARNED | {"steps": 2}),
    "SelectAlgorithm": Case(
        "tiny_modelpool", {"over": {"scaling_factor": [0.2, 0.4]}, "max_samples": 16}
    ),
    "TintingAlgorithm": Case("tiny_modelpool", LEARNED | {"rounds": 2}),
}

CONFIGS = Path(fusion_plugins.__file__).resolve().parents[1] / "config" / "method"
METHODS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SITE = Path(fusion_bench.__file__).resolve().parents[1]
UPSTREAM = next(
    SITE / name for name in ("fusion_bench_config", "config") if (SITE / name).is_dir()
)


def algorithm_classes() -> list[str]:
    """Names of every algorithm class the package exports."""
    exported = {name: getattr(fusion_plugins, name) for name in fusion_plugins.__all__}
    return [
        name
        for name, value in exported.items()
        if inspect.isclass(value) and issubclass(value, BaseAlgorithm)
    ]


CLASSES = algorithm_classes()


def composed(method: str):
    with initialize_config_dir(str(UPSTREAM), version_base=None):
        config = compose("fabric_model_fusion", overrides=[f"method={method}"])
    return OmegaConf.create(OmegaConf.to_container(config, resolve=False)).method


@pytest.fixture(scope="session")
def composed_methods() -> dict:
    return {method: composed(method) for method in METHODS}


@pytest.fixture
def dict_pool() -> dict[str, nn.Module]:
    """A dict of small modules with a counter, a shared part and three experts."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    shared = [torch.randn_like(p) for p in base.parameters()]
    pool = {"_pretrained_": base}
    for task in ("a", "b", "c"):
        pool[task] = deepcopy(base)
        pool[task][1].num_batches_tracked += 7
        for parameter, common in zip(pool[task].parameters(), shared, strict=True):
            parameter.data.add_(0.1 * (torch.randn_like(parameter) + common))
    return pool


@pytest.fixture
def language_folders(tmp_path, monkeypatch) -> dict[str, str]:
    """Folders of tiny language models; results go beside them."""
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    for seed, name in enumerate(("_pretrained_", "a", "b")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(name)
    return {name: str(tmp_path / name) for name in ("_pretrained_", "a", "b")}


@pytest.fixture
def case(name, request) -> Case:
    if name not in CASES:
        pytest.fail(f"{name} is exported but has no line in CASES of {__file__}")
    return CASES[name]


@pytest.fixture
def pool(case, request):
    return request.getfixturevalue(case.pool)


def run(name: str, case: Case, pool) -> nn.Module:
    seed_everything(0, verbose=False)
    return getattr(fusion_plugins, name)(**case.options).run(pool)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want) and want
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


def test_there_are_classes_and_configs_and_each_has_the_other(composed_methods):
    assert "AWDAlgorithm" in CLASSES and "awd" in METHODS
    assert set(CASES) >= set(CLASSES)
    configured = {get_object(c._target_).__name__ for c in composed_methods.values()}
    assert configured == set(CLASSES)


@pytest.mark.parametrize("method", METHODS)
def test_the_config_makes_the_object_with_its_values(composed_methods, method):
    config = composed_methods[method]
    algorithm = instantiate(config)
    assert isinstance(algorithm, BaseAlgorithm)
    saved = algorithm.config
    options = [key for key in config if key not in ("_target_", "_recursive_")]
    assert len(options) >= 5
    for option in options:
        assert saved[option] == config[option], option


@pytest.mark.parametrize("method", METHODS)
def test_the_config_lists_every_option(composed_methods, method):
    config = composed_methods[method]
    known = set(get_object(config._target_)._config_mapping.values())
    known -= {"_usage_", "_version_", "_recursive_"}
    assert known and known == set(config) - {"_target_", "_recursive_"}


@pytest.mark.parametrize("method", METHODS)
def test_an_object_survives_saving_and_loading(composed_methods, method, tmp_path):
    algorithm = instantiate(composed_methods[method])
    algorithm.to_yaml(tmp_path / "method.yaml")
    again = type(algorithm).from_yaml(tmp_path / "method.yaml")
    assert type(again) is type(algorithm)
    assert again.config == algorithm.config


@pytest.mark.parametrize("name", CLASSES)
def test_changed_options_survive_saving_and_loading(name, case, tmp_path):
    algorithm = getattr(fusion_plugins, name)(**case.options)
    assert case.options
    algorithm.to_yaml(tmp_path / "method.yaml")
    again = type(algorithm).from_yaml(tmp_path / "method.yaml")
    for option, value in case.options.items():
        assert getattr(again, option) == value


@pytest.mark.parametrize("name", CLASSES)
def test_a_misspelt_option_is_refused_with_a_hint(name):
    kind = getattr(fusion_plugins, name)
    option = max((entry.name for entry in fields(kind.Options)), key=len)
    typo = option[:2] + option[3:]
    message = f"{name} has no option '{typo}'. Did you mean '{option}'"
    with pytest.raises(TypeError, match=message):
        kind(**{typo: "x"})


@pytest.mark.parametrize("name", CLASSES)
def test_a_run_merges_and_leaves_its_inputs_alone(name, case, pool):
    models = as_modelpool(pool)
    held = {n: models.load_model(n) for n in models.all_model_names}
    before = {n: weights(model) for n, model in held.items()}
    training = {n: model.training for n, model in held.items()}
    merged = run(name, case, pool)
    assert isinstance(merged, nn.Module)
    assert merged is not held["_pretrained_"]
    changed = []
    for key, value in merged.state_dict().items():
        assert torch.isfinite(value.float()).all(), key
        # A wrapper around the merged model puts a prefix before its names.
        changed += [
            not torch.equal(value, start)
            for name, start in before["_pretrained_"].items()
            if key.endswith(name)
        ]
    assert any(changed)
    for n, model in held.items():
        assert_equal(weights(model), before[n])
        assert_equal(weights(models.load_model(n)), before[n])
        assert model.training == training[n]


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_seed_gives_the_same_model_and_it_can_be_saved(
    name, case, pool, tmp_path
):
    merged = run(name, case, pool)
    assert_equal(weights(run(name, case, pool)), weights(merged))
    save_model(merged, str(tmp_path / "model.safetensors"))
    other = deepcopy(merged)
    for value in other.state_dict().values():
        value.zero_()
    load_model(other, str(tmp_path / "model.safetensors"))
    assert_equal(weights(other), weights(merged))
