"""Users' mistakes are named before time is spent on them."""

import re
import shutil

import pytest
import torch
from lightning import Fabric
from safetensors.torch import save_file

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.learned.artifacts import (
    SavedCoefficients,
    load_coefficients,
    save_coefficients,
)

BAD_OPTIONS = [
    (
        {"preset": "paper"},
        "preset is 'paper', expected one of ['default', 'fast', 'official', 'fusion_b",
    ),
    ({"clamp": "yes"}, "clamp is 'yes', expected one of [None, True, False]"),
    ({"steps": -1}, "steps is -1, expected a whole number >= 0"),
    ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
    ({"batches_per_task": 0}, "batches_per_task is 0, expected a whole number >= 1"),
    ({"entropy_eps": 2}, "entropy_eps is 2, expected a number in [0, 1]"),
    ({"granularity": "row"}, "granularity is 'row', expected one of ['layer', 'task']"),
    ({"init": "0.3"}, "init is '0.3', expected a number in [-10, 10]"),
    ({"lr": 0}, "lr is 0, expected a number in (0, 1e+30]"),
    ({"lr": float("nan")}, "lr is nan, expected a number"),
    ({"batch_size": 0}, "batch_size is 0, expected a whole number >= 1"),
    ({"trim": 20}, "trim is 20, expected a number in (0, 1]"),
    ({"disentangle": True}, "disentangle is True, expected AWD settings"),
    (
        {"disentangle": {"alhpa": 1}},
        "disentangle has no option 'alhpa'. Did you mean 'alpha'",
    ),
    ({"data": "dev"}, "data is 'dev', expected one of ['test', 'val', 'train']"),
    ({"fraction": 0}, "fraction is 0, expected a number in (0, 1]"),
    ({"max_samples": 0}, "max_samples is 0, expected a whole number >= 1"),
    ({"seed": "a"}, "seed is 'a', expected a whole number in [0, 2^63)"),
    (
        {"task_vector_dtype": "int8", "trim": 0.2},
        "trim rewrites single task vectors, which task_vector_dtype=int8 keeps in",
    ),
    (
        {"task_vector_dtype": "int4", "disentangle": {"granularity": "row"}},
        "disentangle rewrites single task vectors, which task_vector_dtype=int4",
    ),
    ({"task_vector_dtype": "half"}, "task_vector_dtype is 'half', expected one of"),
    ({"offload": "no"}, "offload is 'no', expected one of [True, False]"),
    ({"compile": 3}, "compile is 3, expected one of [True, False]"),
    ({"offload": None}, "offload is None, expected one of"),
    ({"objective": "labels"}, "objective is 'labels', expected one of"),
    ({"save_model": "y"}, "save_model is 'y', expected one of"),
    ({"batch_tasks": "all"}, "batch_tasks is 'all', expected one of ['auto', True"),
    ({"cache": "gpu"}, "cache is 'gpu', expected one of ['cpu', 'device', 'none']"),
    ({"num_workers": -1}, "num_workers is -1, expected a whole number >= 0"),
    ({"keep": "*.bias"}, "keep is '*.bias', expected a list of patterns"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0, expected a whole number >= 1"),
    ({"keep_checkpoints": 0}, "keep_checkpoints is 0, expected a whole number >= 1"),
    ({"guard_every": -1}, "guard_every is -1, expected a whole number >= 0"),
    ({"guard_every": 5, "guard_samples": 0}, "guard_samples is 0, expected"),
    ({"log_every": True}, "log_every is True, expected a whole number >= 1"),
]


@pytest.mark.parametrize("options, message", BAD_OPTIONS, ids=lambda v: str(v)[:40])
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AdaMergingAlgorithm(**options)


def test_unknown_options_are_refused_with_a_hint():
    with pytest.raises(
        TypeError, match="no option 'max_step'.*Known options:.*max_sam"
    ):
        AdaMergingAlgorithm(max_step=5)
    with pytest.raises(
        TypeError, match="no option 'batchsize'. Did you mean 'batch_si"
    ):
        AdaMergingAlgorithm(batchsize=5)


def run(modelpool, precision: str = "32-true", **options):
    settings = {"steps": 2, "max_samples": 16, "guard_every": 0, "num_workers": 0}
    algorithm = AdaMergingAlgorithm(**(settings | options))
    algorithm.fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    algorithm.run(modelpool)
    return algorithm


def never_loaded(modelpool):
    """The pool, with models that nobody may load."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded before the mistake was named")

    modelpool.load_model = modelpool.load_clip_model = load
    return modelpool


def test_pools_without_test_datasets_are_refused_before_loading(tiny_modelpool):
    tiny_modelpool._test_datasets = None
    message = (
        r"lists no test_datasets for \['digits', 'textures', 'colours'\].*_model_only"
    )
    with pytest.raises(ValueError, match=message):
        run(never_loaded(tiny_modelpool))


def test_tasks_the_pool_does_not_have_are_refused_before_loading(tiny_modelpool):
    info = {"letters": {"classnames": ["a", "b"], "templates": ["a {}."]}}
    with pytest.raises(ValueError, match=r"describes \['letters'\], but the pool's"):
        run(never_loaded(tiny_modelpool), tasks=info)


def test_other_pools_are_refused_before_loading():
    models = {"_pretrained_": torch.nn.Linear(2, 2), "a": torch.nn.Linear(2, 2)}
    with pytest.raises(TypeError, match="does not know the pool class BaseModelPool"):
        run(models)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_weights_are_refused(tiny_modelpool, precision):
    message = f"fabric.precision={precision} would keep.*Use bf16-mixed"
    with pytest.raises(ValueError, match=message):
        run(never_loaded(tiny_modelpool), precision)


# -- saved coefficients ------------------------------------------------------------


def saved(tmp_path, tasks=("digits", "textures", "colours"), layers=None, shape=None):
    layers = layers or ("a", "b")
    applied = torch.zeros(len(tasks), len(layers))
    raw = torch.zeros(shape or applied.shape)
    result = SavedCoefficients(tuple(tasks), tuple(layers), raw, applied)
    return save_coefficients(result, tmp_path)


def layers_of(modelpool) -> tuple[str, ...]:
    return tuple(n for n, _ in modelpool.load_model("_pretrained_").named_parameters())


def test_a_missing_coefficient_file_is_refused_before_loading(tiny_modelpool, tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors", tmp_path / "weights.pt"):
        with pytest.raises(
            ValueError, match="is not a file that a run saved; expected"
        ):
            run(never_loaded(tiny_modelpool), coefficients=str(path))


def test_files_of_another_kind_are_refused(tmp_path):
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds \['layer.weight'\], not coefficients"):
        load_coefficients(tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="broken.safetensors cannot be read"):
        load_coefficients(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks": ("digits", "textures")}, r"has 2 tasks, this pool has 3.*'colours'"),
        ({"tasks": ("digits", "letters", "colours")}, r"\['letters', 'textures'\]"),
        ({"tasks": ("colours", "textures", "digits")}, "differ in their order"),
        ({"layers": ("a", "b")}, r"has 2 layers, this pool has \d+; they differ in"),
    ],
)
def test_coefficients_of_another_pool_are_refused(
    tiny_modelpool, tmp_path, changes, message
):
    path = saved(tmp_path, **({"layers": layers_of(tiny_modelpool)} | changes))
    with pytest.raises(ValueError, match=f"(?s){message}.*fit only the"):
        run(tiny_modelpool, coefficients=str(path))


def test_coefficients_of_another_granularity_are_refused(tiny_modelpool, tmp_path):
    path = saved(tmp_path, layers=layers_of(tiny_modelpool), shape=(3,))
    with pytest.raises(
        ValueError, match=r"have shape \(3,\), this run learns \(3, 39\)"
    ):
        run(tiny_modelpool, coefficients=str(path))


# -- resuming ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def left_behind(tiny_pool_root, tmp_path_factory):
    """A checkpoint of step 2, as an interrupted run leaves it."""
    from fusion_plugins.adaptation import Checkpoints
    from fusion_plugins.demo import demo_modelpool

    folder = tmp_path_factory.mktemp("resume")
    kept, forget = folder / "kept", Checkpoints.forget

    def keep_a_copy(self):
        shutil.copytree(self.folder, kept)
        forget(self)

    Checkpoints.forget = keep_a_copy
    try:
        options = {"checkpoint_dir": str(folder), "checkpoint_every": 2}
        run(demo_modelpool(root=tiny_pool_root), steps=4, **options)
    finally:
        Checkpoints.forget = forget
    return kept / "step_00000002"


def test_a_resume_path_without_checkpoint_is_refused(tiny_modelpool, tmp_path):
    with pytest.raises(ValueError, match="resume: .*holds no checkpoint"):
        run(tiny_modelpool, checkpoint_dir=str(tmp_path), resume=str(tmp_path))


def test_a_resume_of_a_changed_run_names_what_changed(
    tiny_modelpool, tmp_path, left_behind
):
    options = {"checkpoint_dir": str(tmp_path), "resume": str(left_behind)}
    with pytest.raises(ValueError, match="other settings") as error:
        run(tiny_modelpool, steps=4, lr=0.5, seed=8, **options)
    assert "lr: 0.01 -> 0.5" in str(error.value)
    assert "seed: None -> 8" in str(error.value)
    assert "granularity" not in str(error.value)
    # What only changes how a run goes is no change.
    again = run(tiny_modelpool, steps=4, log_every=2, cache="none", **options)
    whole = run(tiny_modelpool, steps=4, checkpoint_dir=None)
    assert torch.equal(again.result.raw, whole.result.raw)


@pytest.mark.parametrize(
    "name, value", [("clamp", False), ("trim", 0.2), ("disentangle", {"alpha": 0.1})]
)
def test_coefficients_of_other_options_are_refused(tmp_path, name, value):
    meaning = {"clamp": True, "trim": None, "disentangle": None}
    saved = SavedCoefficients(
        ("a", "b"), ("w",), torch.ones(2, 1), torch.ones(2, 1), meaning
    )
    path = save_coefficients(saved, tmp_path)
    loaded = load_coefficients(path)
    loaded.require(("a", "b"), ("w",), meaning, path)
    with pytest.raises(ValueError, match=f"learned with {name}=.*same method"):
        loaded.require(("a", "b"), ("w",), meaning | {name: value}, path)
