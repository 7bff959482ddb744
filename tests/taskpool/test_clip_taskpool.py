"""Our CLIP task pool beside FusionBench's own: same numbers, tinted layers, ECE."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from fusion_bench.method.emr_merging.emr_merging import EMRMerging
from fusion_bench.models.hf_clip import HFCLIPClassifier
from safetensors.torch import save_file
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

from fusion_plugins import TintedModel
from fusion_plugins.demo import demo_modelpool, demo_taskpool
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.merged.sites import Site, trainable_copy
from fusion_plugins.pools import adapter_for
from fusion_plugins.taskpool import CLIPTaskPool
from fusion_plugins.taskpool.images import Recorder

UPSTREAM = "fusion_bench.taskpool.CLIPVisionModelTaskPool"
BLOCK = "vision_model.encoder.layers.1"


@pytest.fixture(scope="module")
def ours(tiny_pool_root) -> CLIPTaskPool:
    return demo_taskpool(tiny_pool_root, batch_size=50)


@pytest.fixture(scope="module")
def upstream(tiny_pool_root):
    return demo_taskpool(tiny_pool_root, batch_size=50, pool_class=UPSTREAM)


@pytest.fixture(scope="module")
def clip_heads(tiny_pool_root) -> dict[str, ClassificationHead]:
    adapter = adapter_for(demo_modelpool(tiny_pool_root))
    adapter.prepare(torch.device("cpu"))
    return adapter.heads()


def trunk(tiny_pool_root, name="digits") -> nn.Module:
    return demo_modelpool(tiny_pool_root).load_model(name).eval()


def noisy(layer: nn.Module, scale: float) -> nn.Module:
    layer = trainable_copy(layer)
    for parameter in layer.parameters():
        parameter.data.add_(scale * torch.randn_like(parameter))
    return layer


@pytest.fixture
def head_tinted(tiny_pool_root, clip_heads) -> TintedModel:
    """Heads somewhat away from the zero-shot ones, with a bias."""
    torch.manual_seed(0)
    heads = {}
    for task, head in clip_heads.items():
        weight = head.weight.detach()
        heads[task] = ClassificationHead(
            weight + 0.5 * torch.randn_like(weight), torch.randn(len(weight))
        )
    reference = {task: head.weight.detach() for task, head in clip_heads.items()}
    return TintedModel(trunk(tiny_pool_root), {"head": heads}, reference)


@pytest.fixture
def block_tinted(tiny_pool_root) -> TintedModel:
    torch.manual_seed(1)
    model = trunk(tiny_pool_root)
    layers = {
        task: noisy(model.get_submodule(Site.on(model, BLOCK)), 0.1)
        for task in ("digits", "textures", "colours")
    }
    return TintedModel(model, {BLOCK: layers})


@pytest.fixture
def projection_tinted(tiny_pool_root, ours) -> TintedModel:
    torch.manual_seed(2)
    ours.setup()
    layer = ours.clip_model.visual_projection
    layers = {t: noisy(layer, 0.1) for t in ("digits", "textures", "colours")}
    return TintedModel(trunk(tiny_pool_root), {"outer:visual_projection": layers})


def test_a_clip_without_its_text_tower_is_refused(tiny_pool_root, tmp_path):
    """Its zero-shot heads would be random."""
    vision = trunk(tiny_pool_root, "_pretrained_")
    shutil.copytree(tiny_pool_root / "pretrained", tmp_path, dirs_exist_ok=True)
    save_file(dict(vision.state_dict()), tmp_path / "model.safetensors")
    pool = demo_taskpool(tiny_pool_root)
    pool._clip_model = str(tmp_path)
    with pytest.raises(ValueError, match="^The task pool's CLIP: .*CLIPModel.* lack "):
        pool.evaluate(vision)


class Logits:
    """Notes the logits that a task pool's classifier gives, per task."""

    def __init__(self, monkeypatch):
        self.seen: dict[str, list[torch.Tensor]] = {}
        plain = HFCLIPClassifier.forward
        measured = Recorder.__call__

        def forward(classifier, images, *args, task_name=None, **kwargs):
            outputs = plain(classifier, images, *args, task_name=task_name, **kwargs)
            self.seen.setdefault(task_name, []).append(outputs["logits"].clone())
            return outputs

        def record(recorder, images, *args, task_name=None, **kwargs):
            outputs = measured(recorder, images, *args, task_name=task_name, **kwargs)
            self.seen.setdefault(task_name, []).append(outputs["logits"].clone())
            return outputs

        self._patch = monkeypatch
        self._patches = {
            UPSTREAM: (HFCLIPClassifier, "forward", forward),
            "ours": (Recorder, "__call__", record),
        }

    def of(self, taskpool, model) -> dict[str, torch.Tensor]:
        self.seen = {}
        kind = "ours" if isinstance(taskpool, CLIPTaskPool) else UPSTREAM
        with self._patch.context() as patch:
            patch.setattr(*self._patches[kind])
            self.report = taskpool.evaluate(model)
        return {task: torch.cat(parts) for task, parts in self.seen.items()}


@pytest.fixture
def logits(monkeypatch) -> Logits:
    return Logits(monkeypatch)


def targets(taskpool, task: str) -> torch.Tensor:
    return torch.cat([labels for _, labels in taskpool.test_dataloaders[task]])


# -- plain models ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_pretrained_", "textures"])
def test_plain_models_have_upstreams_numbers_to_the_bit(
    name, ours, upstream, tiny_pool_root
):
    model = trunk(tiny_pool_root, name)
    want, got = upstream.evaluate(model), ours.evaluate(model)
    assert want.keys() == got.keys() and len(want) == 5
    for task in ("digits", "textures", "colours", "average"):
        assert got[task].keys() == {"accuracy", "loss", "ece"}
        for number in ("accuracy", "loss"):
            assert got[task][number] == want[task][number]
    assert got["model_info"] == want["model_info"]


def hand_made_ece(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Sum over 15 bins of (share of samples) x |accuracy - mean confidence|."""
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    error, edges = 0.0, [i / 15 for i in range(16)]
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = (right[inside].mean() - confidence[inside].mean()).abs()
            error += inside.double().mean().item() * gap.item()
    return error


def test_the_calibration_error_is_that_of_15_bins(ours, tiny_pool_root, logits):
    seen = logits.of(ours, trunk(tiny_pool_root))
    report, errors = logits.report, []
    for task in ("digits", "textures", "colours"):
        probabilities, labels = seen[task].softmax(1), targets(ours, task)
        assert probabilities.shape[0] == len(labels) == 120
        metric = MulticlassCalibrationError(probabilities.shape[1], 15, "l1")
        want = metric(probabilities, labels).item()
        assert report[task]["ece"] == pytest.approx(want, abs=1e-6)
        by_hand = hand_made_ece(probabilities, labels)
        assert report[task]["ece"] == pytest.approx(by_hand, abs=1e-5)
        errors.append(report[task]["ece"])
    assert report["average"]["ece"] == pytest.approx(sum(errors) / 3, abs=1e-12)
    assert max(errors) > 0.01


# -- tinted models --------------------------------------------------------------------


def test_a_head_tint_is_the_same_under_upstreams_unmodified_pool(
    ours, upstream, head_tinted, logits
):
    with_ours = logits.of(ours, head_tinted)
    report = logits.report
    with_upstream = logits.of(upstream, head_tinted)
    classes = set()
    for task, want in with_ours.items():
        torch.testing.assert_close(with_upstream[task], want, rtol=0, atol=1e-5)
        theirs = logits.report[task]
        assert theirs["accuracy"] == report[task]["accuracy"]
        assert theirs["loss"] == pytest.approx(report[task]["loss"], abs=1e-5)
        assert (want.softmax(1).argmax(1) == targets(ours, task)).float().mean() == (
            pytest.approx(report[task]["accuracy"])
        )
        classes.add(want.shape[1])
    assert len(classes) > 1  # tasks with different numbers of classes


def test_a_head_tint_uses_the_tinted_head_on_unit_features(
    ours, head_tinted, tiny_pool_root, logits
):
    seen = logits.of(ours, head_tinted)
    model, clip = trunk(tiny_pool_root), ours.clip_model
    for task in head_tinted.tasks:
        with torch.no_grad():
            parts = [model(images)[1] for images, _ in ours.test_dataloaders[task]]
            features = F.normalize(clip.visual_projection(torch.cat(parts)), dim=1)
            want = head_tinted.head(task)(features)
            zero_shot = features @ head_tinted._reference[task].t()
        torch.testing.assert_close(seen[task], want, rtol=0, atol=1e-5)
        assert (want - zero_shot).abs().max() > 0.5


def test_heads_that_cannot_be_features_need_our_pool(
    ours, upstream, tiny_pool_root, clip_heads
):
    reference = {t: h.weight.detach().clone() for t, h in clip_heads.items()}
    reference["digits"][1] = reference["digits"][0]  # as if two names were equal
    heads = {t: ClassificationHead(r, torch.ones(len(r))) for t, r in reference.items()}
    model = TintedModel(trunk(tiny_pool_root), {"head": heads}, reference)
    with pytest.raises(
        ValueError, match="Task 'digits': a head of 10 classes"
    ) as error:
        upstream.evaluate(model)
    assert "CLIPTaskPool" in str(error.value)
    assert 0 <= ours.evaluate(model)["digits"]["accuracy"] <= 1


def test_an_inner_tint_is_each_tasks_own_model(
    ours, block_tinted, tiny_pool_root, logits
):
    seen = logits.of(ours, block_tinted)
    report = logits.report
    for task in block_tinted.tasks:
        plain = trunk(tiny_pool_root)
        (switch,) = block_tinted.switches
        layer = switch._option_modules[task]
        plain.get_submodule(Site.on(plain, BLOCK)).load_state_dict(layer.state_dict())
        alone = logits.of(ours, plain)[task]
        torch.testing.assert_close(seen[task], alone, rtol=0, atol=1e-5)
        assert logits.report[task]["accuracy"] == report[task]["accuracy"]


def test_an_outer_tint_replaces_the_projection_for_its_task_only(
    ours, projection_tinted, logits
):
    projection = ours.clip_model.visual_projection
    seen = logits.of(ours, projection_tinted)
    assert ours.clip_model.visual_projection is projection
    for task in projection_tinted.tasks:
        own = projection_tinted.outer_layers(task)["visual_projection"]
        ours.clip_model.visual_projection = own
        try:
            want = logits.of(ours, projection_tinted.trunk)[task]
        finally:
            ours.clip_model.visual_projection = projection
        torch.testing.assert_close(seen[task], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["block_tinted", "projection_tinted"])
def test_other_tints_are_refused_by_upstreams_pool(kind, upstream, request):
    model = request.getfixturevalue(kind)
    error = RuntimeError if kind == "block_tinted" else ValueError
    with pytest.raises(error, match="CLIPTaskPool"):
        upstream.evaluate(model)
    model.set_task("digits")  # every task with the layer of one would be worse
    with pytest.raises(ValueError, match="CLIPTaskPool"):
        upstream.evaluate(model)


def test_tinted_parameters_are_reported(ours, head_tinted):
    info = ours.evaluate(head_tinted)["model_info"]
    assert info["tints"] == head_tinted.parameter_report()
    assert info["tints"]["tints"] > 0


def test_no_task_is_set_after_an_evaluation(ours, block_tinted):
    ours.evaluate(block_tinted)
    assert block_tinted.active_task is None
    with pytest.raises(RuntimeError, match="no task is set"):
        block_tinted(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("kind", ["block_tinted", "projection_tinted"])
def test_task_and_projection_are_restored_when_an_evaluation_fails(
    kind, ours, request, monkeypatch
):
    model = request.getfixturevalue(kind)
    projection = ours.clip_model.visual_projection
    states = []

    def fail(*args, **kwargs):
        states.append((model.active_task, ours.clip_model.visual_projection))
        raise OSError("the disk is gone")

    monkeypatch.setattr(HFCLIPClassifier, "get_image_features", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        ours.evaluate(model)
    ((task, during),) = states
    assert task == "digits"
    assert (during is projection) == (kind == "block_tinted")
    assert model.active_task is None
    assert ours.clip_model.visual_projection is projection


def test_a_task_without_a_tint_is_evaluated_with_the_zero_shot_head(
    ours, tiny_pool_root, clip_heads
):
    head = ClassificationHead(-clip_heads["digits"].weight, torch.zeros(10))
    model = TintedModel(trunk(tiny_pool_root), {"head": {"digits": head}})
    plain, report = ours.evaluate(trunk(tiny_pool_root)), ours.evaluate(model)
    for task in ("textures", "colours"):
        assert report[task]["accuracy"] == plain[task]["accuracy"]
        assert report[task]["loss"] == pytest.approx(plain[task]["loss"], abs=1e-5)
    assert report["digits"]["loss"] > plain["digits"]["loss"]


def test_a_task_without_an_inner_tint_is_named(ours, tiny_pool_root):
    model = trunk(tiny_pool_root)
    layer = trainable_copy(model.get_submodule(Site.on(model, BLOCK)))
    tinted = TintedModel(model, {BLOCK: {"digits": layer}})
    with pytest.raises(ValueError, match="no tint for task 'textures', only for"):
        ours.evaluate(tinted)
    assert tinted.active_task is None


def test_a_model_of_emr_merging_is_evaluated_with_each_tasks_masks(
    ours, tiny_pool_root
):
    model = EMRMerging().run(demo_modelpool(tiny_pool_root))
    report = ours.evaluate(model)
    model.set_task("textures")
    alone = ours.evaluate(model.backbone)
    assert report["textures"] == pytest.approx(alone["textures"], abs=1e-5)
    assert abs(report["digits"]["loss"] - alone["digits"]["loss"]) > 0.1
