"""Teacher labels on a real, small CLIP pool, and what they cost."""

import pytest
import torch
from fusion_bench.modelpool import CLIPVisionModelPool
from toy_tinting import WatchedTinting
from transformers import CLIPVisionModel

from fusion_plugins.adaptation import SampleOrder
from fusion_plugins.demo import demo_modelpool
from fusion_plugins.pools import adapter_for

ROUNDS, BATCH = 2, 20


def run(root, cache="cpu", **options):
    options = {"rounds": ROUNDS, "batch_size": BATCH, "guard_every": 0} | options
    algorithm = WatchedTinting(
        cache=cache, num_workers=0, save_model=False, seed=0, **options
    )
    model = algorithm.run(demo_modelpool(root), None)
    return algorithm, model


@pytest.fixture(scope="module")
def per_batch_teacher(tiny_pool_root) -> dict[str, dict[int, torch.Tensor]]:
    """Sample -> probabilities, by loading each expert and running batch by batch."""
    pool = demo_modelpool(tiny_pool_root)
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    heads, order = adapter.heads(), SampleOrder(0, BATCH)
    result = {}
    for task in pool.model_names:
        expert, result[task] = pool.load_model(task).eval(), {}
        dataset = adapter.dataset(task, "test")
        for draw in range(ROUNDS):
            samples = order.batch(task, len(dataset), draw).tolist()
            images = adapter.decode(
                torch.stack([adapter.encode(dataset[i]) for i in samples])
            )
            with torch.no_grad():
                logits = heads[task](adapter.features(expert, images))
            result[task] |= dict(zip(samples, logits.softmax(1), strict=True))
    return result


@pytest.mark.parametrize("cache", ["cpu", "none"])
def test_labels_made_once_are_those_made_per_batch(
    cache, tiny_pool_root, per_batch_teacher
):
    algorithm, _ = run(tiny_pool_root, cache, labels="soft")
    assert set(algorithm.watch.learner.teachers) == set(per_batch_teacher)
    for task, wanted in per_batch_teacher.items():
        teacher = algorithm.watch.learner.teachers[task]
        samples = sorted(wanted)
        assert len(samples) == ROUNDS * BATCH
        want = torch.stack([wanted[i] for i in samples])
        got = teacher.probabilities[samples]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert torch.equal(teacher.labels[samples], want.argmax(1))
        confidence = teacher.confidence[samples]
        torch.testing.assert_close(confidence, want.max(1).values, rtol=0, atol=1e-5)
        unseen = [i for i in range(120) if i not in wanted]
        assert len(unseen) == 80 and (teacher.labels[unseen] == -1).all()


def test_hard_labels_keep_no_probabilities(tiny_pool_root):
    algorithm, _ = run(tiny_pool_root, rounds=1)
    assert all(
        t.probabilities is None for t in algorithm.watch.learner.teachers.values()
    )


@pytest.fixture
def counted(monkeypatch):
    """Images that CLIP's vision tower sees, without and with a graph."""
    counts = {"teacher": 0, "training": 0}
    plain = CLIPVisionModel.forward

    def forward(model, pixel_values, *args, **kwargs):
        kind = "training" if torch.is_grad_enabled() else "teacher"
        counts[kind] += len(pixel_values)
        return plain(model, pixel_values, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionModel, "forward", forward)
    return counts


def test_the_teacher_costs_one_forward_per_visited_sample(tiny_pool_root, counted):
    run(tiny_pool_root)
    planned = 20  # one draw, for the memory that autograd needs
    assert counted == {"teacher": 3 * 40, "training": planned + 3 * 40}
    counted |= {"teacher": 0, "training": 0}
    run(tiny_pool_root, rounds=8)  # 160 draws of 120 samples: each labelled once
    assert counted == {"teacher": 3 * 120, "training": planned + 3 * 160}


def test_experts_are_never_loaded_as_models(tiny_pool_root, monkeypatch):
    loaded, plain = [], CLIPVisionModelPool.load_model
    built, init = [], CLIPVisionModel.__init__

    def load_model(pool, name, *args, **kwargs):
        loaded.append(name)
        return plain(pool, name, *args, **kwargs)

    def count(model, *args, **kwargs):
        built.append(model)
        init(model, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionModelPool, "load_model", load_model)
    monkeypatch.setattr(CLIPVisionModel, "__init__", count)
    run(tiny_pool_root, rounds=1)
    assert loaded == ["_pretrained_"]
    assert len(built) == 2  # the merged one, and that of the CLIP with the text tower


def test_labels_of_the_pool_are_never_read(tiny_pool_root, monkeypatch):
    """The method never reads a label; spoiled ones give the same bits."""
    algorithm, _ = run(tiny_pool_root, sampling="confidence_gap")
    plain = CLIPVisionModelPool.load_test_dataset

    def spoiled(pool, task, *args, **kwargs):
        dataset = plain(pool, task, *args, **kwargs)
        return [{"image": dataset[i]["image"]} for i in range(len(dataset))]

    monkeypatch.setattr(CLIPVisionModelPool, "load_test_dataset", spoiled)
    blind, _ = run(tiny_pool_root, sampling="confidence_gap")
    assert torch.equal(blind.result.raw, algorithm.result.raw)
