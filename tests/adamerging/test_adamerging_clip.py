"""AdaMerging on a small real CLIP pool, against FusionBench's own class."""

import itertools
import json
import logging
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import fusion_bench
import pytest
import torch
from fusion_bench.method.adamerging.clip_layer_wise_adamerging import (
    CLIPLayerWiseAdaMergingAlgorithm,
)
from fusion_bench.method.adamerging.clip_task_wise_adamerging import (
    CLIPTaskWiseAdaMergingAlgorithm,
)
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from pictures import rendered
from PIL import Image

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.adaptation import SampleOrder
from fusion_plugins.pools import adapter_for, load_task_vectors
from fusion_plugins.pools.tasks import DataOptions, build_tasks

CONFIG = Path(__file__).resolve().parents[2] / "config"
METHODS = sorted(path.stem for path in CONFIG.glob("method/*adamerging*.yaml"))
SITE = Path(fusion_bench.__file__).resolve().parents[1]
QUICK = {
    "preset": "official",
    "steps": 4,
    "max_samples": 40,
    "guard_every": 2,
    "guard_samples": 16,
    "num_workers": 0,
    "checkpoint_dir": None,
}


def cpu_fabric(**options) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, **options)


def run(modelpool, **options):
    """The algorithm after its run, and the merged model."""
    algorithm = AdaMergingAlgorithm(**(QUICK | options))
    algorithm.fabric = algorithm._fabric_instance or cpu_fabric()
    return algorithm, algorithm.run(modelpool)


# -- against FusionBench -----------------------------------------------------------


class Injected:
    """Upstream's class on our batches; keeps the module that holds what it learned."""

    def get_shuffled_test_loader_iter(self, task):
        return self.batches[task]

    def test_time_adaptation(self, module):
        self.adapted = super().test_time_adaptation(module)
        return self.adapted


class LayerWise(Injected, CLIPLayerWiseAdaMergingAlgorithm):
    pass


class TaskWise(Injected, CLIPTaskWiseAdaMergingAlgorithm):
    pass


def endless_batches(modelpool, seed: int) -> dict:
    """The batches our method takes with this seed, as upstream's loaders give them."""
    options = DataOptions(workers=0)
    order = SampleOrder(seed, 16)
    adapter = adapter_for(modelpool)
    draws = dict.fromkeys(adapter.tasks, ())
    tasks = build_tasks(adapter, order, draws, options, cpu_fabric())
    return {task.name: _endless(task.source) for task in tasks}


def _endless(source):
    for draw in itertools.count():
        yield source.batch([draw]).inputs, None


def upstream_coefficients(kind, modelpool, seed: int, cache: Path, steps: int):
    folders = (SITE / "fusion_bench_config", SITE / "config")
    file = "method/adamerging/clip.yaml"
    path = next(f / file for f in folders if (f / file).is_file())
    config = OmegaConf.load(path)
    config.update(fast_dev_run=False, max_steps=steps, cache_dir=str(cache))
    config.save_merging_weights = False
    algorithm = kind(config)
    fabric = cpu_fabric(loggers=TensorBoardLogger(cache))
    algorithm._fabric = algorithm._fabric_instance = fabric
    algorithm.batches = endless_batches(modelpool, seed)
    algorithm.run(modelpool)
    return algorithm.adapted.merge_weight.detach()


@pytest.mark.parametrize(
    "kind, granularity", [(LayerWise, "layer"), (TaskWise, "task")]
)
def test_ten_steps_equal_fusion_benchs_own(
    tiny_modelpool, tmp_path, monkeypatch, kind, granularity
):
    from fusion_bench.utils import cache_utils

    monkeypatch.setattr(cache_utils, "DEFAULT_CACHE_DIR", tmp_path)
    want = upstream_coefficients(kind, tiny_modelpool, 5, tmp_path, steps=10)
    algorithm, _ = run(
        tiny_modelpool,
        preset="fusion_bench",
        steps=10,
        seed=5,
        granularity=granularity,
        max_samples=None,
    )
    model = tiny_modelpool.load_model("_pretrained_")
    assert algorithm.result.layers == tuple(n for n, _ in model.named_parameters())
    assert (want - 0.3).abs().max() > 3e-3
    got, want = (
        determined(x, algorithm.result.layers) for x in (algorithm.result.raw, want)
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def determined(raw: torch.Tensor, layers) -> torch.Tensor:
    """Coefficients without those of the attention keys' biases.

    A key's bias adds the same to all scores of a query, so its gradient is zero but for
    rounding, of which Adam makes whole steps.
    """
    if raw.dim() == 1:
        return raw
    columns = [not name.endswith("k_proj.bias") for name in layers]
    assert 0 < columns.count(False) <= 2
    return raw[:, columns]


# -- every method name -------------------------------------------------------------


def method_config(name: str, **options):
    """The YAML file as the command line composes it, with a few options changed."""
    with initialize_config_dir(str(CONFIG / "method"), version_base=None):
        config = compose(name)
    config.update({"seed": 0} | QUICK | options)
    return config


def test_the_method_files_are_found():
    assert len(METHODS) == 5


@pytest.mark.parametrize("name", METHODS)
def test_every_method_file_runs_and_learns(tiny_modelpool, name):
    algorithm = instantiate(method_config(name, lr=1e-2))
    algorithm.fabric = cpu_fabric()
    merged = algorithm.run(tiny_modelpool)
    tasks, layers = len(tiny_modelpool.model_names), len(algorithm.result.layers)
    shape = (tasks,) if "task_wise" in name else (tasks, layers)
    assert tuple(algorithm.result.raw.shape) == shape
    assert (algorithm.result.raw - 0.3).abs().max() > 0.02
    assert (algorithm.trim == 0.2) == name.endswith("_pp")
    assert (algorithm.disentanglement is not None) == name.startswith("awd")
    assert all(torch.isfinite(value).all() for value in merged.state_dict().values())
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_method_files_name_every_option():
    config = method_config("adamerging")
    known = set(AdaMergingAlgorithm()._config_mapping.values())
    ignored = {"_target_", "_recursive_", "_version_", "_usage_"}
    assert set(config) - ignored == known - ignored


# -- AWD + AdaMerging --------------------------------------------------------------


class Disentangled:
    """The pool with experts that were disentangled beforehand, as modules."""

    def __init__(self, modelpool, settings: dict):
        from fusion_plugins.awd.disentangle import disentangle
        from fusion_plugins.awd.functional import Descent

        _, vectors = load_task_vectors(modelpool)
        numbers = {n: settings[n] for n in ("alpha", "lr", "iterations")}
        found = disentangle(
            vectors, Descent(**numbers), granularity=settings["granularity"]
        )
        base = modelpool.load_model("_pretrained_")
        self.experts = {}
        for index, task in enumerate(vectors.tasks):
            self.experts[task] = expert = deepcopy(base)
            tensors = expert.state_dict()
            for block in vectors.blocks():
                c = found.delta_coefficients(block.key).to(block.task_vectors)
                c = c[:, block.rows] if c.dim() == 2 else c[:, None]
                delta = (c[:, :, None] * block.task_vectors).sum(dim=0)
                rows = block.task_vectors[index] - delta
                place = tensors[block.key]
                place = place if place.dim() < 2 else place[block.rows]
                place.add_(rows.view(place.shape))

    def __call__(self, name: str):
        return self.experts[name]


@pytest.mark.parametrize("granularity", ["model", "tensor", "row"])
def test_disentangle_equals_adamerging_of_disentangled_experts(
    tiny_modelpool, granularity
):
    from fusion_plugins.pools import with_experts

    settings = {
        "alpha": 0.001,
        "lr": 0.02 if granularity == "row" else 0.5,  # rows diverge at 0.5
        "iterations": 60,
        "granularity": granularity,
    }
    want, model = run(
        with_experts(tiny_modelpool, Disentangled(tiny_modelpool, settings))
    )
    got, merged = run(tiny_modelpool, disentangle=settings)
    plain, _ = run(tiny_modelpool)
    assert (got.result.raw - plain.result.raw).abs().max() > 1e-5
    # Adam makes equal steps of small gradients, which float32 knows less exactly; on a
    # toy pool in float64 the two agree to 1e-6.
    a, b = (determined(x.result.raw, x.result.layers) for x in (got, want))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    for name, value in model.state_dict().items():
        if not name.endswith("k_proj.bias"):
            result = merged.state_dict()[name]
            torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-5)


# -- what a run leaves behind ------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_pool_root, tmp_path_factory):
    """(algorithm, merged model, log folder) of a run with a logger."""
    from fusion_plugins.demo import demo_modelpool

    folder = tmp_path_factory.mktemp("log")
    algorithm = AdaMergingAlgorithm(**(QUICK | {"lr": 1e-2, "seed": 7}))
    algorithm.fabric = cpu_fabric(
        loggers=TensorBoardLogger(folder, name="", version="")
    )
    with rendered():
        merged = algorithm.run(demo_modelpool(root=tiny_pool_root))
    return algorithm, merged, folder


def pixels(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_saved_model_gives_the_same_logits(finished, tiny_modelpool):
    _, merged, folder = finished
    from transformers import CLIPVisionModel

    again = CLIPVisionModel.from_pretrained(folder / "merged_model").eval()
    with torch.no_grad():
        assert torch.equal(merged.eval()(pixels())[1], again(pixels())[1])
        base = tiny_modelpool.load_model("_pretrained_").eval()
        assert not torch.equal(base(pixels())[1], again(pixels())[1])


def test_the_saved_coefficients_are_those_learned(finished, tiny_modelpool):
    algorithm, merged, folder = finished
    readable = json.loads((folder / "coefficients.json").read_text())
    assert tuple(readable) == algorithm.result.layers
    for column, layer in enumerate(algorithm.result.layers):
        for row, task in enumerate(algorithm.result.tasks):
            want = algorithm.result.applied[row, column].item()
            assert readable[layer][task] == want
    again, model = run(tiny_modelpool, coefficients=str(folder), lr=1.0)
    assert again.history == [] and torch.equal(again.result.raw, algorithm.result.raw)
    for name, value in merged.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_history_is_whole(finished, tiny_modelpool):
    algorithm, _, folder = finished
    record = json.loads((folder / "history.json").read_text())
    assert [entry["step"] for entry in record["steps"]] == [0, 1, 2, 3]
    assert [entry["step"] for entry in record["guard"]] == [0, 2, 4]
    assert record["samples"] == dict.fromkeys(algorithm.result.tasks, 4 * 2 * 16)
    first, last = record["steps"][0], record["steps"][-1]
    for task in tiny_modelpool.model_names:
        # A draw's mean entropy is its loss; an official step adds up two draws.
        assert first[f"loss/{task}"] == pytest.approx(2 * first[f"entropy/{task}"])
    total = sum(first[f"loss/{task}"] for task in tiny_modelpool.model_names)
    assert first["loss"] == pytest.approx(total)
    assert first["coefficient_mean"] != last["coefficient_mean"]
    assert first["samples_per_second"] > 0 and last["seconds/backward"] > 0


def test_pictures_and_logs_are_there(finished):
    _, _, folder = finished
    for name in ("coefficients.png", "history.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 20
    assert list(folder.glob("events.out.tfevents*"))


def test_the_model_card_says_how_it_came_about(finished, tiny_pool_root):
    algorithm, _, folder = finished
    card = (folder / "merged_model" / "README.md").read_text()
    for text in (
        f"# AdaMerging of {', '.join(algorithm.result.tasks)}",
        "learned on unlabelled test samples with AdaMerging, seed 7",
        'preset: "official"',
        "lr: 0.01",
        "- `digits`: digits",
        "- `_pretrained_`: pretrained",
        f"- torch {version('torch')}",
        f"- fusion-bench {version('fusion-bench')}",
    ):
        assert text in card
    assert str(tiny_pool_root) not in card


def test_nothing_is_written_without_a_logger(tiny_modelpool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tiny_modelpool, steps=1)
    assert list(tmp_path.iterdir()) == []


def test_save_model_can_be_left_out(tiny_modelpool, tmp_path):
    algorithm = AdaMergingAlgorithm(**(QUICK | {"save_model": False, "steps": 1}))
    logger = TensorBoardLogger(tmp_path, name="", version="")
    algorithm.fabric = cpu_fabric(loggers=logger)
    algorithm.run(tiny_modelpool)
    assert not (tmp_path / "merged_model").exists()
    assert (tmp_path / "README.md").is_file()


# -- the pool's side ---------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_the_chosen_split_is_the_one_adapted_on(tiny_modelpool, split):
    algorithm = AdaMergingAlgorithm(data=split, **QUICK)
    adapter, order = adapter_for(tiny_modelpool), SampleOrder(0, 16)
    draws, options = dict.fromkeys(adapter.tasks, ()), algorithm.options.data_options
    tasks = build_tasks(adapter, order, draws, options, cpu_fabric())
    available = getattr(tiny_modelpool, f"load_{split}_dataset")("digits")
    digits = next(task for task in tasks if task.name == "digits")
    assert digits.source.count == min(len(available), 40)
    stored = {digits.source.data.dataset[i].numpy().tobytes() for i in range(5)}
    every = {adapter.encode(sample).numpy().tobytes() for sample in available}
    assert stored <= every


def test_the_log_names_the_protocol_and_a_collapse(tiny_modelpool, caplog):
    with caplog.at_level(logging.INFO):
        algorithm, _ = run(
            tiny_modelpool, lr=1.0, steps=12, preset="fusion_bench", init=0.1
        )
    text = caplog.text
    assert "AdaMerging: preset 'fusion_bench' with {'steps': 12, 'lr': 1.0, " in text
    assert "Entropy collapse at step" in text
    agreements = [entry["agreement"] for entry in algorithm.guard_history]
    assert agreements[-1] < agreements[0] - 0.05


def test_stop_on_collapse_returns_the_best_state(tiny_modelpool):
    options = {"lr": 1.0, "preset": "fusion_bench", "init": 0.1, "seed": 1}
    stopped, _ = run(tiny_modelpool, steps=12, stop_on_collapse=True, **options)
    agreements = {e["step"]: e["agreement"] for e in stopped.guard_history}
    assert max(agreements) < 12
    best = max(agreements, key=lambda step: (agreements[step], -step))
    want, _ = run(tiny_modelpool, steps=best, **options)
    assert torch.equal(stopped.result.raw, want.result.raw)
