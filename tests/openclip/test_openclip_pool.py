"""What an OpenCLIP pool means to the methods, and that they compute what they should."""

import pytest
import torch
from fusion_bench.models.open_clip import ClassificationHead, ImageClassifier
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torchvision.transforms import Compose, Normalize, Resize

from fusion_plugins import AdaMergingAlgorithm, AWDAlgorithm, TintingAlgorithm
from fusion_plugins.merged.model import TintedModel
from fusion_plugins.modelpool.openclip import OpenCLIPModelPool
from fusion_plugins.modelpool.openclip.modelpool import OpenCLIPVisionModelPool
from fusion_plugins.pools import adapter_for, family_of
from fusion_plugins.pools.image_processing import ImageCodec
from fusion_plugins.pools.loading import expert_checkpoint, load_base
from fusion_plugins.task_vectors import SafetensorsCheckpoint
from fusion_plugins.task_vectors.names import NamedAs

CPU = torch.device("cpu")
TASKS = ["textures", "colours"]


@pytest.fixture
def prepared(pool):
    adapter = adapter_for(pool)
    adapter.prepare(CPU)
    return adapter


def state(pool, name) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in pool.load_model(name).state_dict().items()}


# -- the adapter ------------------------------------------------------------------------


def test_upstreams_pool_and_ours_have_the_adapter(pool):
    assert type(adapter_for(pool)).__name__ == "OpenCLIPAdapter"
    models = {"_pretrained_": nn.Linear(1, 1), "a": nn.Linear(1, 1)}
    heads = {"a": ClassificationHead(True, torch.ones(2, 1))}
    upstream = OpenCLIPVisionModelPool(models, classification_heads=heads)
    assert type(adapter_for(upstream)) is type(adapter_for(pool))
    assert family_of(upstream).files(upstream, "a") is None


@pytest.mark.parametrize("task", TASKS)
def test_kept_samples_are_exactly_what_the_processor_makes(prepared, pool, task):
    raw, dataset = pool.load_test_dataset(task), prepared.dataset(task, "test")
    samples = [raw[i] for i in range(12)]
    stored = torch.stack([prepared.encode(dataset[i]) for i in range(12)])
    want = torch.stack([pool.test_processor(s["image"]) for s in samples])
    assert stored.dtype == torch.uint8 and want.std() > 0.1
    assert torch.equal(prepared.decode(stored), want)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_a_sample_may_be_a_pair_and_of_another_size_and_mode(prepared, pool, mode):
    image = Image.effect_noise((50, 41), 80).convert("RGB").convert(mode)
    got = prepared.decode(prepared.encode((image, 3))[None])[0]
    assert torch.equal(got, pool.test_processor(image.convert("RGB")))


def test_other_preprocessing_is_kept_as_it_comes_out(pool):
    pool._test_processor = lambda image: torch.full((3, 2, 2), 1 / 3)
    adapter = adapter_for(pool)
    adapter.prepare(CPU)
    stored = adapter.encode({"image": Image.new("RGB", (4, 4))})
    assert stored.dtype == torch.float32
    assert torch.equal(adapter.decode(stored[None])[0], stored)


def test_images_that_are_no_bytes_are_refused(prepared):
    with pytest.raises(ValueError, match="image is a Tensor, expected an image of pil"):
        prepared.encode({"image": torch.full((3, 32, 32), 0.3337)})


def test_a_normalisation_alone_is_not_split():
    normalise = Normalize([0.5] * 3, [0.5] * 3)
    for steps in ([normalise], [Resize(3), normalise], [Resize(3)]):
        assert not ImageCodec(Compose(steps)).compact


def test_features_and_heads_give_upstreams_logits(prepared, pool):
    dataset = prepared.dataset("textures", "test")
    stored = torch.stack([prepared.encode(dataset[i]) for i in range(8)])
    encoder = pool.load_model("textures").eval()
    head = pool.load_classification_head("textures")
    heads = prepared.heads()
    with torch.no_grad():
        features = prepared.features(encoder, prepared.decode(stored))
        got = heads["textures"](features)
        want = ImageClassifier(encoder, head)(prepared.decode(stored))
    assert list(heads) == TASKS
    torch.testing.assert_close(features.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert not any(p.requires_grad for p in heads["textures"].parameters())


def with_heads(pool, heads) -> OpenCLIPModelPool:
    return OpenCLIPModelPool(pool._models, classification_heads=heads)


def test_heads_that_do_not_normalise_get_the_embeddings_as_they_are(pool):
    heads = {t: ClassificationHead(False, torch.randn(4, 32)) for t in TASKS}
    adapter = adapter_for(with_heads(pool, heads))
    adapter.prepare(CPU)
    adapter.heads()
    images = torch.rand(2, 3, 32, 32)
    encoder = pool.load_model("textures")
    assert torch.equal(adapter.features(encoder, images), encoder(images))
    heads["colours"].normalize = True
    with pytest.raises(ValueError, match="Some .* normalise .*'textures': False, 'col"):
        adapter_for(with_heads(pool, heads)).heads()


def test_what_a_pool_must_have(pool):
    with pytest.raises(
        ValueError, match=r"no classification head for \['colours'\], o"
    ):
        adapter_for(with_heads(pool, {"textures": "a.pt"}))
    with pytest.raises(ValueError, match=r"no classification head for \['text.*\[\]"):
        adapter_for(with_heads(pool, None))
    with pytest.raises(ValueError, match="known by its classification_heads"):
        adapter_for(pool, {"textures": {}})


def test_a_model_in_memory_must_tell_how_to_prepare_images():
    models = {"_pretrained_": nn.Linear(1, 1), "a": nn.Linear(1, 1)}
    heads = {"a": ClassificationHead(True, torch.ones(2, 1))}
    adapter = adapter_for(OpenCLIPModelPool(models, classification_heads=heads))
    with pytest.raises(ValueError, match="it has no val_preprocess"):
        adapter.prepare(CPU)


# -- streaming --------------------------------------------------------------------------


def as_files(pool, folder) -> OpenCLIPModelPool:
    """The pool's models as `.pt` paths with converted files beside."""
    from fusion_plugins.modelpool.openclip.checkpoints import save_encoder

    paths = {}
    for name in pool.all_model_names:
        save_encoder(pool.load_model(name), folder / f"{name}.safetensors")
        paths[name] = str(folder / f"{name}.pt")
    return OpenCLIPModelPool(paths)


@pytest.mark.parametrize("kind", ["folders", "files"])
def test_safetensors_are_streamed_and_equal_what_loading_gives(pool, tmp_path, kind):
    source = pool if kind == "folders" else as_files(pool, tmp_path)
    base = load_base(source)
    streamed = expert_checkpoint(source, "colours", base)
    assert type(streamed) is NamedAs
    assert type(streamed._checkpoint) is SafetensorsCheckpoint
    loaded = source.load_model("colours").state_dict()
    assert list(base.state_dict()) == list(loaded)
    for name, want in loaded.items():
        assert torch.equal(streamed.read(name), want)


def test_only_our_own_class_is_streamed_and_only_safetensors(pool, tmp_path):
    class Special(OpenCLIPModelPool):
        """May load something else."""

    files = family_of(pool).files
    assert files(pool, "colours").name == "colours"
    assert files(Special(pool._models), "colours") is None
    torch.save(pool.load_model("colours").state_dict(), tmp_path / "a.pt")
    others = OpenCLIPModelPool({"a": str(tmp_path / "a.pt"), "b": nn.Linear(1, 1)})
    assert files(others, "a") is None and files(others, "b") is None


# -- the methods ------------------------------------------------------------------------


def by_hand(pool, coefficients) -> dict[str, torch.Tensor]:
    """base + coefficients x task vectors in float64; one coefficient per task and tensor."""
    base = state(pool, "_pretrained_")
    experts = [state(pool, task) for task in TASKS]
    return {
        name: value
        + sum(
            coefficients[t][name] * (expert[name] - value)
            for t, expert in enumerate(experts)
        )
        for name, value in base.items()
    }


def assert_equals(module, want) -> None:
    got = module.state_dict()
    assert list(got) == list(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name].double(), value, rtol=0, atol=2e-6)


def awd_by_hand(pool, steps, alpha, lr, scaling) -> dict[str, torch.Tensor]:
    """Gradient descent on the whole redundant vector, then Task Arithmetic."""
    base = state(pool, "_pretrained_")
    experts = [state(pool, task) for task in TASKS]
    taus = [torch.cat([(e[k] - base[k]).flatten() for k in base]) for e in experts]
    delta = torch.zeros_like(taus[0], requires_grad=True)
    for step in range(steps):
        a, b = (tau - delta for tau in taus)
        loss = (a @ b / (a.norm() * b.norm())).abs()
        if step:  # the norm has no slope at 0
            loss = loss + alpha * delta.norm()
        (slope,) = torch.autograd.grad(loss, delta)
        delta = (delta - lr * slope).detach().requires_grad_(True)
    change = scaling * sum(tau - delta.detach() for tau in taus)
    assert delta.norm() > 1e-4
    merged, start = {}, 0
    for name, value in base.items():
        part = change[start : start + value.numel()]
        merged[name], start = value + part.view_as(value), start + value.numel()
    return merged


def test_awd_is_the_descent_written_out(pool):
    options = {"alpha": 0.001, "lr": 0.5, "iterations": 20}
    merged = AWDAlgorithm(**options).run(pool)
    assert_equals(merged, awd_by_hand(pool, 20, 0.001, 0.5, 0.3))
    assert not any(t.is_meta for t in merged.buffers())


def learned(algorithm) -> list[dict[str, float]]:
    """The applied coefficients: for each task, tensor name -> value."""
    result = algorithm.result
    assert result.tasks == tuple(TASKS)
    return [
        dict(zip(result.layers, row.double().tolist(), strict=True))
        for row in result.applied
    ]


def test_adamerging_merges_with_what_it_learned(pool):
    algorithm = AdaMergingAlgorithm(preset="official", steps=4, lr=0.05, batch_size=8)
    merged = algorithm.run(pool)
    coefficients = learned(algorithm)
    assert len({round(v, 6) for v in coefficients[0].values()}) > 5
    assert_equals(merged, by_hand(pool, coefficients))


def test_adamerging_lowers_the_entropy_of_upstreams_classifier(pool):
    paper = {"preset": "official", "guard_every": 0}
    algorithm = AdaMergingAlgorithm(steps=8, lr=0.05, batch_size=16, **paper)
    merged = algorithm.run(pool).eval()
    start = AdaMergingAlgorithm(steps=0, **paper).run(pool).eval()
    assert entropy(pool, merged) < entropy(pool, start) - 0.01


@torch.no_grad()
def entropy(pool, encoder) -> float:
    total = 0.0
    for task in TASKS:
        data = pool.load_test_dataset(task)
        images = torch.stack([pool.test_processor(d["image"]) for d in data])
        head = pool.load_classification_head(task)
        p = ImageClassifier(encoder, head)(images).softmax(-1)
        total -= (p * p.log()).sum(-1).mean().item()
    return total


def test_tinting_learns_a_trunk_and_a_head_per_task(pool):
    algorithm = TintingAlgorithm(rounds=4, batch_size=8, lr=0.05)
    merged = algorithm.run(pool)
    assert isinstance(merged, TintedModel)
    assert_equals(merged.trunk, by_hand(pool, learned(algorithm)))
    for task in TASKS:
        frozen = pool.load_classification_head(task)
        head = merged.head(task)
        assert head.weight.shape == frozen.weight.shape
        change = (head.weight - frozen.weight).abs().max()
        assert 0.01 < change < 1  # of the order of lr x steps: nothing was folded twice


def test_a_block_can_be_tinted_and_the_model_comes_back(pool, tmp_path):
    site = "model.visual.transformer.resblocks.1"
    merged = TintingAlgorithm(rounds=2, batch_size=8, tint=site).run(pool)
    pool.save_model(merged, str(tmp_path / "tinted"))
    again = TintedModel.from_pretrained(tmp_path / "tinted").eval()
    images = torch.rand(3, 3, 32, 32)
    for task in TASKS:
        for model in (merged.eval(), again):
            model.set_task(task)
        assert torch.equal(again(images), merged(images))


def test_pools_in_memory_are_left_alone(pool):
    models = {name: pool.load_model(name) for name in pool.all_model_names}
    before = {
        n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in models.items()
    }
    heads = {t: pool.load_classification_head(t) for t in TASKS}
    held = OpenCLIPModelPool(
        models,
        classification_heads=heads,
        test_datasets=OmegaConf.create(pool._test_datasets),
    )
    AdaMergingAlgorithm(steps=2, batch_size=8).run(held)
    TintingAlgorithm(rounds=1, batch_size=8).run(held)
    for name, tensors in before.items():
        for key, value in models[name].state_dict().items():
            assert torch.equal(value, tensors[key])
