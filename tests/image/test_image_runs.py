"""AWD, AdaMerging and Tinting on tiny models of every image family."""

import pytest
import torch
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool
from tiny_image_pools import FAMILIES, LAYERS, SIZE, TASKS, Images, datasets, make_pool
from torch.func import functional_call
from torchvision import transforms

from fusion_plugins import (
    AdaMergingAlgorithm,
    AWDAlgorithm,
    SelectAlgorithm,
    TintedModel,
    TintingAlgorithm,
)
from fusion_plugins.adaptation import MergedWeights
from fusion_plugins.pools import (
    adapter_for,
    family_of,
    load_base,
    load_task_vectors,
    with_shared_heads,
)
from fusion_plugins.pools.families.image_classification import load_processor
from fusion_plugins.pools.loading import load_module
from fusion_plugins.pools.task_heads import with_task_heads

QUIET = {"guard_every": 2, "guard_samples": 4, "num_workers": 0, "save_model": False}
QUIET |= {"checkpoint_dir": None, "batch_size": 4, "seed": 0, "data": "test"}
QUIET |= {"stop_on_collapse": False}  # the last state, not the best


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pool(family, tmp_path_factory):
    return make_pool(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def tinted(pool) -> TintedModel:
    return TintingAlgorithm(rounds=2, **QUIET).run(pool).eval()


def inputs() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 3, SIZE, SIZE)


def outputs(model: TintedModel) -> dict[str, torch.Tensor]:
    """Task -> logits."""
    found = {}
    with torch.no_grad():
        for task in TASKS:
            model.eval().set_task(task)
            result = model(inputs())
            found[task] = result if torch.is_tensor(result) else result.logits
    return found


def assert_same(got: TintedModel, want: TintedModel) -> None:
    found = outputs(got)
    for task, logits in outputs(want).items():
        assert logits.shape == (2, TASKS[task])
        torch.testing.assert_close(found[task], logits, rtol=0, atol=1e-6)


def taskpool(pool) -> ImageClassificationTaskPool:
    processor = load_processor(pool)
    if isinstance(processor, transforms.Compose):  # FusionBench leaves images grey
        grey = transforms.Grayscale(num_output_channels=3)
        processor = transforms.Compose([grey, *processor.transforms])
    return ImageClassificationTaskPool(
        datasets(),
        processor=processor,
        dataloader_kwargs={"batch_size": 7, "num_workers": 0},
    )


def test_fusion_benchs_task_pool_evaluates_the_merge_of_each_method(pool, tinted):
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    merged = AWDAlgorithm().run(pool)
    adapted = AdaMergingAlgorithm(steps=2, init=0.3, **QUIET).run(pool)
    for model in (merged, adapted, tinted):
        report = taskpool(pool).evaluate(model)
        for task in TASKS:
            samples = [Images(task)[i] for i in range(len(Images(task)))]
            stored = torch.stack([adapter.encode(sample) for sample in samples])
            model.set_task(task)
            with torch.no_grad():
                logits = adapter.outputs(model, adapter.decode(stored))
            labels = torch.tensor([sample["label"] for sample in samples])
            want = (logits.argmax(1) == labels).float().mean().item()
            assert report[task]["accuracy"] == pytest.approx(want, abs=1e-6)


def test_merging_adds_the_trunks_and_keeps_every_experts_head(pool):
    merged = AWDAlgorithm(iterations=0).run(pool)
    base = load_base(pool)
    site = family_of(pool).head_site(base)
    experts = {task: load_module(pool, task).state_dict() for task in TASKS}
    trunk = merged.trunk.state_dict()
    checked = 0
    for name, value in base.state_dict().items():
        if name.startswith(site) or "running" in name or not value.is_floating_point():
            continue
        want = value + 0.3 * sum(e[name] - value for e in experts.values())
        torch.testing.assert_close(trunk[name], want, rtol=0, atol=1e-6)
        checked += 1
    assert checked > 10
    for task, expert in experts.items():
        option = task.replace("-", "_")
        heads = {
            name.partition("_option_modules.")[2]: value
            for name, value in trunk.items()
            if f"_option_modules.{option}." in name
        }
        assert heads
        for name, value in heads.items():
            assert torch.equal(value, expert[name.replace(option, site, 1)])


def test_coefficient_gradients_equal_autograd_through_the_merge(pool):
    module, task_vectors = load_task_vectors(pool)
    base = {k: v.detach().clone() for k, v in module.state_dict().items()}
    taus = {k: [] for k in task_vectors.keys}
    for block in task_vectors.blocks():
        taus[block.key].append(block.task_vectors.flatten(1).clone())
    weights = MergedWeights(module, task_vectors)
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    head = adapter.heads()["img-c"]
    torch.manual_seed(0)
    coefficients = (0.3 * torch.rand(len(TASKS), len(taus))).requires_grad_()

    def loss_of(features):
        log_p = head(features).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1).mean()

    weights.train_moved_layers()
    weights.materialise(coefficients.detach())
    loss_of(adapter.features(weights.module, inputs())).backward()
    got = weights.coefficient_gradient()

    def merged(column, name):
        tau = torch.cat(taus[name], 1)
        return base[name] + (coefficients[:, column] @ tau).view(base[name].shape)

    # Running statistics carry no gradient, in autograd neither.
    values = {name: merged(column, name) for column, name in enumerate(taus)}
    values = {n: v.detach() if "running" in n else v for n, v in values.items()}

    class Through(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = weights.module

        def forward(self, inputs):
            return adapter.features(self.module, inputs)

    prefixed = {f"module.{name}": value for name, value in values.items()}
    loss_of(functional_call(Through(), prefixed, (inputs(),))).backward()
    want = coefficients.grad
    assert want.abs().max() > 1e-4
    torch.testing.assert_close(
        got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item()
    )


def test_tinted_heads_are_learned_and_the_trunk_is_shared(pool, tinted):
    site = family_of(pool).head_site(load_base(pool))
    assert tinted.sites == (site,)
    merged = TintingAlgorithm(rounds=0, **QUIET).run(pool)
    for task in TASKS:
        ours, theirs = (
            list(m.switches[0]._option_modules[task.replace("-", "_")].parameters())
            for m in (tinted, merged)
        )
        assert all((a != b).any() for a, b in zip(ours, theirs, strict=True))


def test_an_inner_layer_can_be_tinted(family, pool):
    model = TintingAlgorithm(rounds=2, tint=LAYERS[family], **QUIET).run(pool)
    site = family_of(pool).head_site(load_base(pool))
    assert model.sites == (site, LAYERS[family])
    for values in outputs(model).values():
        assert values.isfinite().all()
    with pytest.raises(RuntimeError, match="no task is set"):
        model.set_task(None)
        model(inputs())


def test_a_folder_holds_the_model_with_all_its_heads(family, pool, tinted, tmp_path):
    family_of(pool).save_model(pool, tinted, tmp_path / "merged")
    if family == "torchvision":
        with pytest.raises(ValueError, match="no config.json .*trunk=module"):
            TintedModel.from_pretrained(tmp_path / "merged")
        trunk = load_module(pool, "_pretrained_")
    else:
        trunk = None
        assert (tmp_path / "merged" / "preprocessor_config.json").is_file()
    loaded = TintedModel.from_pretrained(tmp_path / "merged", trunk=trunk)
    assert loaded.sites == tinted.sites
    assert_same(loaded, tinted)
    chosen = TintedModel.from_pretrained(
        tmp_path / "merged", tasks=["img-b"], trunk=trunk
    )
    assert chosen.tasks == ("img-b",)


def test_a_wrong_trunk_is_refused(pool, tinted, tmp_path):
    tinted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit a Linear"):
        TintedModel.from_pretrained(tmp_path, trunk=torch.nn.Linear(2, 2))


def test_the_pools_own_saving_takes_it_too(family, pool, tinted, tmp_path):
    """What `merged_model_save_path` of FusionBench's program does."""
    target = tmp_path / "saved" / "merged"
    pool.save_model(tinted, str(target))
    if family == "torchvision":  # a state dict
        state = torch.load(target, weights_only=True)
        again = with_task_heads(load_base(pool), pool)
        again.load_state_dict(state)
        assert_same(again, tinted)
    else:
        assert_same(TintedModel.from_pretrained(target), tinted)


def test_other_methods_merge_the_trunks_and_get_the_heads(pool):
    merged = SimpleAverageAlgorithm().run(with_shared_heads(pool))
    model = with_task_heads(merged, pool)
    assert_same(
        model,
        with_task_heads(SimpleAverageAlgorithm().run(with_shared_heads(pool)), pool),
    )
    for parameter in model.trunk.parameters():
        torch.nn.init.zeros_(parameter)
    for logits in outputs(model).values():  # not a closure on the merged module
        assert (logits == 0).all()


def test_experts_of_another_size_are_named(tmp_path):
    pool = make_pool("resnet", tmp_path / "resnet")
    other = make_pool("convnext", tmp_path / "convnext")
    pool._models["odd"] = other._models["img-a"]
    with pytest.raises(ValueError, match="expert 'odd' lacks .* tensor"):
        AWDAlgorithm().run(pool)


@torch.no_grad()
def test_selection_scores_models_with_heads_of_their_own(pool):
    """FusionBench's method is given shared heads; AWD knows the experts'."""
    average = {"_target_": "fusion_bench.method.SimpleAverageAlgorithm"}
    average |= {"inplace": True, "show_pbar": False}
    awd = {"_target_": "fusion_plugins.AWDAlgorithm", "alpha": 0.01, "base": average}
    awd["iterations"] = 20
    adapter = adapter_for(pool)
    adapter.prepare(torch.device("cpu"))
    for method in (average, awd):
        options = {"base": method, "over": {"inplace": [True]}, "num_workers": 0}
        algorithm = SelectAlgorithm(**options)
        merged = algorithm.run(pool).eval()
        (found,) = algorithm.response["candidates"]
        for task in TASKS:
            data, expert = adapter.dataset(task, "test"), load_module(pool, task).eval()
            images = torch.stack([data[i] for i in range(len(data))])
            merged.set_task(task)
            own, other = (
                adapter.outputs(model, adapter.decode(images)).argmax(-1)
                for model in (merged.trunk, expert)
            )
            want = (own == other).float().mean().item()
            assert found["tasks"][task] == pytest.approx(want), task
