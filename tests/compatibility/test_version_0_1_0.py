"""What version 0.1.0 saved before its rooms were rebuilt still loads.

`saved/` was written by commit 5494caf: coefficients, a tinted model, and the checkpoints
of an interrupted AdaMerging run on the toy pool of tests/tinting.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "tinting"))

from toy_tinting import TASKS, ToyAdapter, ToyNet, toy_pool  # noqa: E402

from fusion_plugins import AdaMergingAlgorithm, TintedModel  # noqa: E402
from fusion_plugins.learned.artifacts import load_coefficients  # noqa: E402
from fusion_plugins.pools import as_modelpool  # noqa: E402

SAVED = Path(__file__).with_name("saved")
# Float sums may round differently on another processor.
CLOSE = {"rtol": 0, "atol": 1e-5}
OPTIONS = {
    "preset": "official",
    "steps": 6,
    "lr": 1e-2,
    "batch_size": 8,
    "num_workers": 0,
    "guard_every": 3,
    "guard_samples": 16,
    "checkpoint_every": 2,
    "save_model": False,
    "seed": 0,
}


def adamerging(**options) -> tuple[AdaMergingAlgorithm, torch.nn.Module]:
    algorithm = AdaMergingAlgorithm(**(OPTIONS | options))
    pool = as_modelpool(toy_pool())
    return algorithm, algorithm.run(pool, ToyAdapter(pool))


@pytest.fixture
def outputs() -> dict[str, torch.Tensor]:
    return load_file(SAVED / "outputs.safetensors")


def test_saved_coefficients_merge_to_the_same_model(outputs):
    _, merged = adamerging(coefficients=str(SAVED))
    weight = merged.state_dict()["stem.weight"]
    torch.testing.assert_close(weight, outputs["merged.stem"], **CLOSE)


def test_a_tinted_model_gives_the_same_outputs(outputs):
    model = TintedModel.from_pretrained(SAVED / "tinted", trunk=ToyNet())
    assert model.tasks == tuple(TASKS)
    assert set(model.sites) == {"head", "outer:projection", "blocks.1"}
    for task in TASKS:
        model.set_task(task)
        torch.testing.assert_close(model(outputs["inputs"]), outputs[task], **CLOSE)


def test_an_interrupted_run_continues(tmp_path):
    (run,) = (SAVED / "checkpoints").iterdir()
    step = tmp_path / "step_00000004"
    shutil.copytree(run / step.name, step)
    folder = tmp_path / "new"
    algorithm, _ = adamerging(checkpoint_dir=str(folder), resume=str(step))
    want = load_coefficients(SAVED)
    torch.testing.assert_close(algorithm.result.raw, want.raw, **CLOSE)
    # The history before the interruption is part of the result.
    assert [entry["step"] for entry in algorithm.history] == list(range(6))
    assert [entry["step"] for entry in algorithm.guard_history] == [0, 3, 6]


def test_a_checkpoint_of_other_options_is_still_refused(tmp_path):
    (step,) = (SAVED / "checkpoints").glob("*/step_00000004")
    with pytest.raises(ValueError, match="other settings .*lr: 0.01 -> 0.5"):
        adamerging(checkpoint_dir=str(tmp_path), resume=str(step), lr=0.5)
