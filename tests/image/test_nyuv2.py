"""Dense tasks: NYUv2's encoder is merged, decoders are learned from experts' outputs."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fusion_bench.modelpool import nyuv2_modelpool
from fusion_bench.models.nyuv2.lightning_module import NYUv2Model
from fusion_bench.taskpool.nyuv2_taskpool import NYUv2TaskPool as UpstreamTaskPool
from omegaconf import OmegaConf
from torch import nn

from fusion_plugins import (
    AdaMergingAlgorithm,
    AWDAlgorithm,
    TintedModel,
    TintingAlgorithm,
)
from fusion_plugins.pools import adapter_for, load_base
from fusion_plugins.taskpool.nyuv2 import NYUv2TaskPool
from fusion_plugins.tinting.functional import output_loss

sys.path.append(str(Path(__file__).parents[1] / "compare"))
from running import make_program, read_cells  # noqa: E402

TASKS = {"segmentation": 13, "depth": 1, "normal": 3}  # channels
WIDTH = 6
QUIET = {"guard_every": 2, "guard_samples": 2, "num_workers": 0, "save_model": False}
QUIET |= {"checkpoint_dir": None, "batch_size": 2, "seed": 0, "labels": "outputs"}


class TinyEncoder(nn.Sequential):
    def __init__(self, name: str = "tiny"):
        super().__init__(
            nn.Conv2d(3, WIDTH, 3, stride=8, padding=1),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )


def tiny_decoder(features: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, channels, 1)
    )


@pytest.fixture(scope="module", autouse=True)
def tiny_models():
    """FusionBench's pool builds a ResNet-50 with downloaded weights; build small ones."""
    patch = pytest.MonkeyPatch()
    patch.setattr(nyuv2_modelpool, "resnet_dilated", TinyEncoder)
    patch.setattr(nyuv2_modelpool, "DeepLabHead", tiny_decoder)
    yield
    patch.undo()


def write_images(root: Path, count: int, height: int, width: int) -> None:
    draw = np.random.default_rng(0)
    shapes = {"image": (height, width, 3), "depth": (height, width, 1)}
    shapes |= {"normal": (height, width, 3), "label": (height, width)}
    for name, shape in shapes.items():
        (root / "val" / name).mkdir(parents=True)
        (root / "train" / name).mkdir(parents=True)  # empty, but FusionBench lists it
        for index in range(count):
            values = draw.random(shape).astype(np.float32)
            values = np.floor(13 * values) if name == "label" else values
            np.save(root / "val" / name / f"{index}.npy", values)


@pytest.fixture(scope="module")
def pool(tmp_path_factory, tiny_models):
    folder = tmp_path_factory.mktemp("nyuv2")
    write_images(folder / "nyuv2", 6, 32, 48)
    torch.manual_seed(0)
    base, models = TinyEncoder(), {}
    everything = {"encoder": "tiny", "decoders": list(TASKS)}
    for name in ("_pretrained_", *TASKS):
        encoder = TinyEncoder()
        encoder.load_state_dict(base.state_dict())
        tasks = [name] if name in TASKS else list(TASKS)
        if name in TASKS:
            for parameter in encoder.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            encoder[1].running_var.uniform_(0.5, 1.5)
        decoders = nn.ModuleDict({t: tiny_decoder(0, TASKS[t]) for t in tasks})
        path = folder / f"{name}.ckpt"
        torch.save({"state_dict": NYUv2Model(encoder, decoders).state_dict()}, path)
        models[name] = {**everything, "decoders": tasks, "ckpt_path": str(path)}
    data = {"_target_": "fusion_bench.dataset.nyuv2.NYUv2", "train": False}
    data["root"] = str(folder / "nyuv2")
    return nyuv2_modelpool.NYUv2ModelPool(
        OmegaConf.create(models),
        test_datasets=OmegaConf.create(dict.fromkeys(TASKS, data)),
    )


@pytest.fixture(scope="module")
def tinted(pool) -> TintedModel:
    return TintingAlgorithm(rounds=3, **QUIET).run(pool).eval()


def distances(pool, model) -> dict[str, float]:
    """Task -> mean absolute difference from the expert's outputs on all images."""
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    heads, found = adapter.heads(), {}
    for task in TASKS:
        data = adapter.dataset(task, "test")
        images = torch.stack([adapter.encode(data[i]) for i in range(len(data))])
        head = heads[task]
        if isinstance(model, TintedModel):
            model.set_task(task)
            head = model.head(task) or head
        expert = pool.load_model(task).eval()
        with torch.no_grad():
            want = heads[task](expert(images))
            found[task] = (head.eval()(model.eval()(images)) - want).abs().mean().item()
    return found


def test_outputs_have_their_channels_last(pool):
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    heads = adapter.heads()
    encoder = load_base(pool).eval()
    image = adapter.encode(adapter.dataset("depth", "test")[0])
    assert image.shape == (3, 32, 48)
    for task, channels in TASKS.items():
        outputs = heads[task](adapter.features(encoder, image[None]))
        assert outputs.shape == (1, 4, 6, channels)
        decoder = pool.load_model(task, encoder_only=False).decoders[task]
        want = decoder(encoder(image[None])).permute(0, 2, 3, 1)
        torch.testing.assert_close(outputs, want)


def test_awd_merges_the_encoders(pool):
    merged = AWDAlgorithm(iterations=0).run(pool)
    assert isinstance(merged, TinyEncoder)
    base = load_base(pool).state_dict()
    experts = [pool.load_model(task).state_dict() for task in TASKS]
    want = base["0.weight"] + 0.3 * sum(
        e["0.weight"] - base["0.weight"] for e in experts
    )
    torch.testing.assert_close(merged.state_dict()["0.weight"], want)
    average = sum(e["1.running_var"] for e in experts) / len(experts)
    torch.testing.assert_close(merged.state_dict()["1.running_var"], average)


def test_output_loss_is_the_mean_absolute_difference():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 3, 4, 2), torch.randn(2, 3, 4, 2)
    got = output_loss(ours.double(), theirs.double())
    for sample in range(2):
        total = sum(
            abs(a.item() - b.item())
            for a, b in zip(
                ours[sample].double().flatten(),
                theirs[sample].double().flatten(),
                strict=True,
            )
        )
        assert got[sample].item() == pytest.approx(total / 24, abs=1e-12)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 3, 4, 2\)"):
        output_loss(ours, theirs[:, :, 0, 0])


def test_decoders_learn_what_the_experts_give(pool):
    before = distances(pool, TintingAlgorithm(rounds=0, **QUIET).run(pool))
    algorithm = TintingAlgorithm(rounds=40, **QUIET)
    model = algorithm.run(pool)
    after = distances(pool, model)
    assert model.sites == ("head",) and not algorithm.guard_history
    for task in TASKS:
        assert after[task] < 0.7 * before[task]


def test_a_layer_of_the_encoder_can_be_tinted(pool):
    model = TintingAlgorithm(rounds=2, tint="3", **QUIET).run(pool)
    assert model.sites == ("3",)
    assert distances(pool, model).keys() == TASKS.keys()


def test_decoders_are_saved_and_read_into_modules(pool, tinted, tmp_path):
    tinted.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"heads are not linear.*heads=\{task: module\}"
    ):
        TintedModel.from_pretrained(tmp_path, trunk=load_base(pool))
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    heads = adapter.heads()
    again = TintedModel.from_pretrained(tmp_path, trunk=load_base(pool), heads=heads)
    assert distances(pool, again) == pytest.approx(distances(pool, tinted))


def test_adamerging_refuses_tasks_without_classes(pool):
    options = {name: QUIET[name] for name in QUIET if name != "labels"}
    with pytest.raises(
        ValueError, match=r"\['depth', 'normal'\] predict numbers.*tinting"
    ):
        AdaMergingAlgorithm(steps=1, **options).run(pool)


def test_adamerging_minimises_the_entropy_of_every_place(pool):
    alone = nyuv2_modelpool.NYUv2ModelPool(
        OmegaConf.create(
            {n: pool._models[n] for n in ("_pretrained_", "segmentation")}
        ),
        test_datasets=pool._test_datasets,
    )
    options = {name: QUIET[name] for name in QUIET if name != "labels"}
    algorithm = AdaMergingAlgorithm(preset="official", steps=3, lr=0.1, **options)
    algorithm.run(alone)
    logits = torch.randn(2, 3, 4, 5)
    log_p = logits.log_softmax(-1)
    want = -(log_p.exp() * log_p).sum(-1).mean((1, 2))
    losses = algorithm.make_objective().loss("segmentation", logits, None)
    torch.testing.assert_close(losses.values, want)
    assert losses.weights is None
    assert (algorithm.result.raw != 0.3).any()


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_labels_of_dense_tasks_are_refused(pool, labels):
    with pytest.raises(ValueError, match=f"labels={labels}: .* labels=outputs"):
        TintingAlgorithm(rounds=1, **QUIET | {"labels": labels}).run(pool)


def test_outputs_cannot_be_sampled_by_confidence():
    with pytest.raises(ValueError, match="sampling=top_p compares predicted classes"):
        TintingAlgorithm(labels="outputs", sampling="top_p")


def test_an_expert_without_its_decoder_is_named(pool):
    models = dict(pool._models)
    models["edges"] = models["depth"]
    other = nyuv2_modelpool.NYUv2ModelPool(OmegaConf.create(models))
    adapter = adapter_for(other)
    adapter.prepare(torch.device("cpu"))
    with pytest.raises(ValueError, match="expert 'edges' has decoders for .'depth'."):
        adapter.heads()


def evaluated(taskpool_class, pool, model, data: Path, tasks) -> dict[str, float]:
    config = {"data_dir": str(data), "tasks": tasks, "batch_size": 1, "num_workers": 0}
    if taskpool_class is UpstreamTaskPool:
        taskpool = taskpool_class(OmegaConf.create(config))
    else:
        taskpool = taskpool_class(**config)
    taskpool._program = SimpleNamespace(modelpool=pool)
    taskpool._trainer = quiet_trainer(data)
    return dict(taskpool.evaluate(model))


def quiet_trainer(folder: Path):
    import lightning

    options = {"accelerator": "cpu", "devices": 1, "logger": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(**options, default_root_dir=folder)


def test_decoders_that_a_checkpoint_lacks_are_not_random(pool, tmp_path):
    models = OmegaConf.create({name: dict(c) for name, c in pool._models.items()})
    tensors = torch.load(models.depth.ckpt_path, weights_only=True)["state_dict"]
    models.depth.ckpt_path = str(tmp_path / "encoder.pt")
    own = {n: t for n, t in tensors.items() if not n.startswith("decoders.")}
    torch.save(own, models.depth.ckpt_path)
    other = nyuv2_modelpool.NYUv2ModelPool(models)
    with pytest.raises(ValueError, match="^expert 'depth' has no trained head"):
        merged = other.load_model("segmentation")
        evaluated(NYUv2TaskPool, other, merged, tmp_path, ["depth"])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_the_task_pool_uses_each_tasks_own_decoder(pool, tinted, tmp_path):
    write_images(tmp_path / "nyuv2", 2, 288, 384)
    tasks = ["segmentation", "depth"]
    merged = AWDAlgorithm().run(pool)
    want = evaluated(UpstreamTaskPool, pool, merged, tmp_path, tasks)
    ours = evaluated(NYUv2TaskPool, pool, merged, tmp_path, tasks)
    depth = {n: want[f"val/depth_{n}"] for n in ("loss", "abs_err", "rel_err")}
    assert ours.pop("depth") == depth and ours.pop("segmentation") and ours == want
    found = evaluated(NYUv2TaskPool, pool, tinted, tmp_path, tasks)
    assert found.keys() == {*want, *tasks} and len(want) > 4
    assert found["val/depth_loss"] != want["val/depth_loss"]
    parts = found["val/depth_loss"] + found["val/segmentation_loss"]
    assert found["val/loss"] == pytest.approx(parts, rel=1e-5)
    heads = {t: tinted.head(t).decoder for t in tasks}
    module = NYUv2Model(tinted.trunk, nn.ModuleDict(heads)).eval()
    image = torch.from_numpy(np.load(tmp_path / "nyuv2/val/image/0.npy")).movedim(-1, 0)
    assert module(image[None], tasks)["depth"].shape == (1, 1, 288, 384)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (
            [(np.zeros((3, 4, 4)), {})],
            "sample 0: its image is a ndarray, expected a tens",
        ),
        ([{"depth": 0}], r"sample 0: it has no image, only the columns \['depth'\]"),
        (
            [(torch.zeros(3, 4, 4), {}), ()],
            "sample 1: it is a tuple of 0, expected a di",
        ),
        ([], "dataset of task 'depth' is empty"),
    ],
)
def test_samples_that_are_no_images_are_named(pool, samples, message, monkeypatch):
    listed = {**pool._test_datasets, "depth": samples}
    monkeypatch.setattr(pool, "_test_datasets", listed)
    with pytest.raises(ValueError, match=message):
        adapter_for(pool).check_datasets("test")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
@pytest.mark.usefixtures("no_pictures")
def test_the_recipe_runs_to_its_end(pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where lightning logs
    monkeypatch.setattr(NYUv2Model, "image_size", (32, 48))
    paths = {n: Path(c["ckpt_path"]) for n, c in pool._models.items()}
    root = paths["depth"].parent
    changes = [f"modelpool.models.{n}.ckpt_path={path}" for n, path in paths.items()]
    changes += [f"modelpool.models.{name}.encoder=tiny" for name in paths]
    changes += [f"taskpool.data_dir={root}", "taskpool.num_workers=0"]
    changes += ["+overrides.tinting.rounds=1", "+overrides.tinting.num_workers=0"]
    program = make_program(tmp_path, "recipe=nyuv2", "save_models=true", *changes)
    program.run()
    cells = {c["label"]: c for c in read_cells(tmp_path / "results").values()}
    assert len(cells) == 7
    assert {c["status"] for c in cells.values()} == {"done"}, cells
    evaluate = partial(evaluated, UpstreamTaskPool, pool, data=root, tasks=["depth"])
    want = evaluate(model=pool.load_model("depth").eval())["val/depth_abs_err"]
    experts, awd = cells["experts"], cells["awd"]
    assert experts["tasks"]["depth"]["score"] == pytest.approx(want, rel=1e-5)
    assert tuple(awd["metrics"]) == tuple(TASKS)
    assert tuple(awd["metrics"].values()) == ("mIoU", "abs_err", "mean_err")
    assert awd["lower_is_better"] == ["depth", "normal"] and not awd["answers"]
    for task, name in awd["metrics"].items():
        ratio = awd["tasks"][task][name] / experts["tasks"][task][name]
        share = ratio if task == "segmentation" else 1 / ratio
        assert awd["normalised"][task] == pytest.approx(share)
    mean = sum(awd["normalised"].values()) / 3
    assert awd["average"] == {"score": pytest.approx(mean)}
    page = (tmp_path / "results" / "report.html").read_text()
    assert "normal (mean_err ↓)" in page and "average share of the experts" in page
    assert 'class="data heat unlike"' in page
    assert "↑: higher is better, ↓: lower; stronger colour" in page
