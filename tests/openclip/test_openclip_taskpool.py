"""Our OpenCLIP task pool beside FusionBench's own: same numbers, tinted layers, ECE."""

from types import SimpleNamespace

import pytest
import torch
from fusion_bench.models.open_clip import ClassificationHead as UpstreamHead
from old_pickles import ClassificationHead as OldHead
from old_pickles import save_old
from omegaconf import OmegaConf
from torchmetrics.classification import MulticlassCalibrationError

from fusion_plugins import TintedModel
from fusion_plugins.demo import demo_modelpool, demo_openclip_taskpool, demo_taskpool
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.merged.sites import trainable_copy
from fusion_plugins.taskpool.kept import KeptTestSet
from fusion_plugins.taskpool.openclip import (
    OpenCLIPTaskPool,
    OpenCLIPVisionModelTaskPool,
)

TASKS = ["textures", "colours"]
BLOCK = "model.visual.transformer.resblocks.1"
LOADER = OmegaConf.create({"batch_size": 30, "num_workers": 0})


@pytest.fixture
def ours(openclip_root) -> OpenCLIPTaskPool:
    return demo_openclip_taskpool(openclip_root, batch_size=30)


def upstream(pool) -> OpenCLIPVisionModelTaskPool:
    """FusionBench's own, in a program with the pool; heads as modules: it reads no others."""
    heads = {t: pool.load_classification_head(t) for t in TASKS}
    taskpool = OpenCLIPVisionModelTaskPool(pool._test_datasets, heads, LOADER)
    taskpool._program = SimpleNamespace(modelpool=pool)
    return taskpool


@torch.no_grad()
def predictions(pool, encoder, task, head=None):
    """Logits and targets of a task, worked out without any task pool."""
    data = pool.load_test_dataset(task)
    images = torch.stack([pool.test_processor(d["image"]) for d in data])
    features = encoder.eval()(images)
    features = features / features.norm(dim=-1, keepdim=True)
    head = head or pool.load_classification_head(task)
    return head(features), torch.tensor([d["label"] for d in data])


def accuracy(logits, targets) -> float:
    return (logits.argmax(1) == targets).double().mean().item()


def test_a_plain_model_gets_upstreams_numbers_and_ece(pool, ours):
    encoder = pool.load_model("textures")
    got, want = ours.evaluate(encoder), upstream(pool).evaluate(encoder)
    for task in TASKS:
        logits, targets = predictions(pool, encoder, task)
        error = MulticlassCalibrationError(logits.shape[1], n_bins=15, norm="l1")
        assert got[task].pop("ece") == pytest.approx(
            error(logits.softmax(-1), targets).item(), abs=1e-5
        )
    assert 0 < got["average"].pop("ece") < 1
    assert got == want


def test_images_are_kept_from_the_second_evaluation_on(pool, ours):
    encoder = pool.load_model("textures")
    first, *later = [ours.evaluate(encoder) for _ in range(3)]
    assert later == [first, first]
    kept = [prepared.dataset for prepared in ours.test_datasets.values()]
    assert all(isinstance(k, KeptTestSet) and k._room is not None for k in kept)


def test_the_demo_is_the_clip_demo_in_open_clips_modules(clip_root, pool, ours):
    got = ours.evaluate(pool.load_model("colours"))
    clip = demo_modelpool(clip_root).load_model("colours")
    want = demo_taskpool(clip_root, batch_size=30).evaluate(clip)
    for task in TASKS:
        for key in ("accuracy", "loss", "ece"):
            assert got[task][key] == pytest.approx(want[task][key], abs=1e-4)


def test_a_head_tint_replaces_the_head_of_its_task_alone(pool, ours):
    encoder = pool.load_model("textures")
    torch.manual_seed(0)
    frozen = pool.load_classification_head("textures").weight
    tint = ClassificationHead(
        frozen + torch.randn_like(frozen), torch.randn(len(frozen))
    )
    tinted = TintedModel(encoder, {"head": {"textures": tint}})
    report = ours.evaluate(tinted)
    plain = ours.evaluate(encoder)
    want = predictions(pool, encoder, "textures", tint)
    assert report["textures"]["accuracy"] == pytest.approx(accuracy(*want))
    assert report["textures"]["loss"] != pytest.approx(
        plain["textures"]["loss"], abs=0.01
    )
    assert report["colours"] == plain["colours"]
    assert report["model_info"]["tints"]["per_task"] == {
        "textures": tint.weight.numel() + 8
    }
    assert tinted.active_task is None and not hasattr(tinted, "val_preprocess")


def test_a_tint_inside_is_chosen_by_the_task(pool, ours):
    encoder = pool.load_model("_pretrained_")
    layers = {}
    for seed, task in enumerate(TASKS):
        torch.manual_seed(seed)
        layers[task] = trainable_copy(encoder.get_submodule(BLOCK))
        for parameter in layers[task].parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    tinted = TintedModel(encoder, {BLOCK: layers})
    report = ours.evaluate(tinted)
    for task in TASKS:
        tinted.set_task(task)
        logits, targets = predictions(pool, tinted, task)
        assert report[task]["accuracy"] == pytest.approx(accuracy(logits, targets))
        loss = torch.nn.functional.cross_entropy(logits, targets).item()
        assert report[task]["loss"] == pytest.approx(loss, abs=1e-4)
    tinted = TintedModel(tinted.trunk, {BLOCK: {"textures": layers["textures"]}})
    with pytest.raises(ValueError, match="no tint for task 'colours'"):
        ours.evaluate(tinted)


def test_a_head_that_does_not_normalise(pool):
    weight = torch.randn(8, 32)
    heads = {"textures": UpstreamHead(False, weight)}
    datasets = OmegaConf.create({"textures": pool._test_datasets["textures"]})
    taskpool = OpenCLIPTaskPool(datasets, heads, LOADER)
    taskpool._program = SimpleNamespace(modelpool=pool)
    encoder = pool.load_model("textures")
    tint = ClassificationHead(weight, torch.zeros(8))
    tinted = TintedModel(encoder, {"head": {"textures": tint}})
    want, got = taskpool.evaluate(encoder), taskpool.evaluate(tinted)
    assert got["textures"] == pytest.approx(want["textures"], abs=1e-5)


def test_pickled_heads_need_trust_here_too(pool, tmp_path):
    path = save_old(OldHead(True, torch.randn(8, 32)), tmp_path / "head.pt")
    datasets = OmegaConf.create({"textures": pool._test_datasets["textures"]})
    arguments = datasets, {"textures": str(path)}, LOADER
    with pytest.raises(ValueError, match="taskpool.trust_pickle=true"):
        OpenCLIPTaskPool(*arguments, model_name="ViT-B-32").setup()
    trusting = OpenCLIPTaskPool(*arguments, model_name="ViT-B-32", trust_pickle=True)
    trusting.setup()
    assert trusting.classifier_heads["textures"].weight.shape == (8, 32)
    with pytest.raises(ValueError, match="trust_pickle is 1, expected true or false"):
        OpenCLIPTaskPool(*arguments, trust_pickle=1)


def test_the_preprocessing_must_be_known(pool):
    taskpool = OpenCLIPTaskPool(pool._test_datasets, {}, LOADER)
    with pytest.raises(ValueError, match="or set taskpool.model_name"):
        taskpool.setup()
