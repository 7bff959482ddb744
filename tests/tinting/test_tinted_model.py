"""The tinted model: choosing tasks, counting parameters, files."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forked import call
from fusion_bench.models.wrappers.switch import SwitchModule, set_active_option
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel

from fusion_plugins import TintedModel
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.merged.sites import Site, trainable_copy

TASKS = {"stanford-cars": 7, "glue/cola": 2, "Digits": 10}
HIDDEN, FEATURES = 32, 16


def trunk() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        projection_dim=FEATURES,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModel(config).eval()


LAYER = Site.on(trunk(), "vision_model.encoder.layers.1")
NORM = Site.on(trunk(), "vision_model.post_layernorm")
KINDS = {
    "head": ("head",),
    "inner": (LAYER, NORM),
    "outer": ("outer:visual_projection",),
    "all": ("head", LAYER, "outer:visual_projection"),
}


def noisy(layer: nn.Module) -> nn.Module:
    layer = trainable_copy(layer)
    for parameter in layer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return layer


def layer_for(site: str, task: str, model: nn.Module) -> nn.Module:
    if site == "head":
        weight = torch.randn(TASKS[task], FEATURES)
        return ClassificationHead(weight, torch.randn(TASKS[task]))
    if site.startswith("outer:"):
        return nn.Linear(HIDDEN, FEATURES, bias=False)
    return noisy(model.get_submodule(site))


def tinted(kind: str) -> TintedModel:
    torch.manual_seed(1)
    model = trunk()
    tints = {
        site: {task: layer_for(site, task, model) for task in TASKS}
        for site in KINDS[kind]
    }
    reference = None
    if "head" in KINDS[kind]:
        reference = {t: torch.randn(c, FEATURES) for t, c in TASKS.items()}
    return TintedModel(model, tints, reference)


def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: TintedModel, task: str) -> torch.Tensor:
    """What a pool would compute, with fixed layers where none are tinted."""
    torch.manual_seed(3)
    projection = nn.Linear(HIDDEN, FEATURES, bias=False)
    head = nn.Linear(FEATURES, TASKS[task])
    model.set_task(task)
    projection = model.outer_layers(task).get("visual_projection", projection)
    features = F.normalize(projection(model(images())[1]), dim=1)
    return (model.head(task) or head)(features)


# -- choosing a task ------------------------------------------------------------------


def test_tinted_places_hold_switches_and_the_task_chooses():
    model = tinted("inner")
    assert isinstance(model.trunk.get_submodule(LAYER), SwitchModule)
    assert isinstance(model.trunk.get_submodule(NORM), SwitchModule)
    outputs = {}
    for task in TASKS:
        model.set_task(task)
        plain = trunk()
        for site in KINDS["inner"]:
            option = task.lower().replace("-", "_").replace("/", "_")
            layer = model.trunk.get_submodule(site)._option_modules[option]
            plain.get_submodule(site).load_state_dict(layer.state_dict())
        with torch.no_grad():
            outputs[task] = model(images())[1]
            torch.testing.assert_close(outputs[task], plain(images())[1])
    one, other, _ = outputs.values()
    assert (one - other).abs().max() > 1e-2


def test_upstreams_set_active_option_chooses_the_same_layers():
    model = tinted("inner")
    model.set_task("Digits")
    want = model(images())[1]
    model.set_task("glue/cola")
    assert not torch.equal(model(images())[1], want)
    assert len(set_active_option(model, "Digits")) >= 2
    assert torch.equal(model(images())[1], want)


def test_an_inner_tint_without_a_task_says_what_to_do():
    model = tinted("inner")
    with pytest.raises(RuntimeError, match="no task is set: call set_task") as error:
        model(images())
    assert LAYER in str(error.value) and "CLIPTaskPool" in str(error.value)
    model.set_task("Digits")
    model(images())
    model.set_task(None)
    with pytest.raises(RuntimeError, match="no task is set"):
        model(images())


def test_a_head_tint_needs_no_task_and_leaves_the_trunk_alone():
    model = tinted("head")
    assert torch.equal(model(images())[1], trunk()(images())[1])
    assert model.active_task is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_task_is_refused_with_the_known_ones(kind):
    model = tinted(kind)
    with pytest.raises(ValueError, match="no tint for task 'mnist', only for") as error:
        model.set_task("mnist")
    assert all(repr(task) in str(error.value) for task in TASKS)
    assert model.active_task is None
    assert model.head("mnist") is None


@pytest.mark.parametrize(
    ("tints", "message"),
    [
        ({}, "tints is {}, expected layers by site and task"),
        ({"1": {"a": nn.ReLU()}}, "there is no layer '1' in the Sequential to tint"),
        (
            {"0": {"a": nn.ReLU()}, "head": {"b": nn.ReLU()}},
            r"the layers at 'head' lack those of the tasks \['a'\]",
        ),
    ],
)
def test_tints_that_do_not_fit_the_trunk(tints, message):
    with pytest.raises(ValueError, match=message):
        TintedModel(nn.Sequential(nn.ReLU()), tints)


def test_layers_of_a_task_by_their_places():
    model = tinted("all")
    assert model.head("Digits").weight.shape == (10, FEATURES)
    assert list(model.outer_layers("Digits")) == ["visual_projection"]
    assert tinted("inner").head("Digits") is None
    assert tinted("head").outer_layers("Digits") == {}


# -- upstream's surgery hook ----------------------------------------------------------


def test_changed_features_give_the_tinted_heads_logits():
    model = tinted("head")
    assert model.is_surgery_model
    features = F.normalize(torch.randn(6, FEATURES), dim=1)
    for task in TASKS:
        changed, same, difference = model.compute_surgery_features(features, task)
        got = changed @ model._reference[task].t()
        want = model.head(task)(features)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert torch.equal(same, features)
        assert torch.equal(difference, features - changed)


def test_tasks_without_a_tint_keep_their_features():
    features = torch.randn(4, FEATURES)
    for kind in ("head", "outer"):
        changed, _, none = tinted(kind).compute_surgery_features(features, "mnist")
        assert torch.equal(changed, features) and (none == 0).all()


@pytest.mark.parametrize("kind", ["inner", "outer", "all"])
def test_tints_outside_the_head_cannot_be_features(kind):
    """With a tinted projection beside the head, mapped features would be wrong."""
    model = tinted(kind)
    model.set_task("Digits")
    with pytest.raises(ValueError, match="tint of 'Digits' is not its head alone") as e:
        model.compute_surgery_features(torch.randn(2, FEATURES), "Digits")
    assert "such as CLIPTaskPool" in str(e.value)


def test_more_classes_than_features_point_to_our_task_pool():
    torch.manual_seed(0)
    head = ClassificationHead(torch.randn(20, FEATURES), torch.zeros(20))
    reference = {"many": torch.randn(20, FEATURES)}
    model = TintedModel(trunk(), {"head": {"many": head}}, reference)
    with pytest.raises(
        ValueError, match="Task 'many': a head of 20 classes on 16"
    ) as e:
        model.compute_surgery_features(torch.randn(2, FEATURES), "many")
    assert "CLIPTaskPool" in str(e.value)


# -- numbers --------------------------------------------------------------------------


def test_heads_of_the_eight_tasks_are_389_thousand_parameters():
    classes = {
        "sun397": 397,
        "stanford-cars": 196,
        "resisc45": 45,
        "eurosat": 10,
        "svhn": 10,
        "gtsrb": 43,
        "mnist": 10,
        "dtd": 47,
    }
    with torch.device("meta"):
        vit = CLIPVisionModel(CLIPVisionConfig())  # the defaults are ViT-B/32
        heads = {
            task: ClassificationHead(torch.empty(count, 512), torch.empty(count))
            for task, count in classes.items()
        }
    report = TintedModel(vit, {"head": heads}).parameter_report()
    assert report["tints"] == 388_854
    assert report["trunk"] == 87_456_000
    assert round(report["percent"], 2) == 0.44
    assert report["per_task"]["sun397"] == 397 * 513
    assert sum(report["per_task"].values()) == report["tints"]


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_once_and_without_the_replaced_layer(kind):
    report = tinted(kind).parameter_report()
    plain = trunk()
    assert report["trunk"] == sum(p.numel() for p in plain.parameters())
    sizes = {
        LAYER: sum(p.numel() for p in plain.get_submodule(LAYER).parameters()),
        NORM: 2 * HIDDEN,
        "outer:visual_projection": HIDDEN * FEATURES,
    }
    for task, classes in TASKS.items():
        own = sizes | {"head": classes * (FEATURES + 1)}
        assert report["per_task"][task] == sum(own[site] for site in KINDS[kind])
    assert report["tints"] == sum(report["per_task"].values())
    assert report["percent"] == pytest.approx(100 * report["tints"] / report["trunk"])


# -- files ----------------------------------------------------------------------------


def write_logits(saved: Path, out: Path) -> None:
    results = {}
    for kind in KINDS:
        model = TintedModel.from_pretrained(saved / kind)
        results |= {f"{kind} {task}": logits(model, task) for task in TASKS}
    save_file(results, out)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder per kind of tint."""
    root = tmp_path_factory.mktemp("tinted")
    for kind in KINDS:
        tinted(kind).save_pretrained(root / kind)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_model_gives_the_same_logits(kind, saved):
    model, again = tinted(kind), TintedModel.from_pretrained(saved / kind)
    assert again.tasks == model.tasks and again.sites == model.sites
    for task in TASKS:
        assert torch.equal(logits(again, task), logits(model, task))
    assert again.parameter_report() == model.parameter_report()
    for task, weight in model._reference.items():
        assert torch.equal(again._reference[task], weight)


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits(saved, tmp_path):
    out = tmp_path / "logits.safetensors"
    call(write_logits, saved, out)
    got = load_file(out)
    assert len(got) == len(KINDS) * len(TASKS)
    for kind in KINDS:
        model = tinted(kind)
        for task in TASKS:
            want = logits(model, task)
            torch.testing.assert_close(got[f"{kind} {task}"], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_is_a_normal_model_folder(kind, saved):
    loaded, info = CLIPVisionModel.from_pretrained(
        saved / kind / "trunk", output_loading_info=True
    )
    assert not any(info.values())  # no missing, unexpected or mismatched tensors
    assert torch.equal(loaded.eval()(images())[1], trunk()(images())[1])
    index = json.loads((saved / kind / "tinted.json").read_text())
    assert index["tasks"] == list(TASKS) and index["sites"] == list(KINDS[kind])
    assert len(list((saved / kind / "tints").glob("*.safetensors"))) == len(TASKS)


def test_transformers_alone_says_what_is_missing(saved, caplog):
    message = "tinted model, load it with fusion_plugins.TintedModel.from_pretrained"
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(saved / "head")
    with pytest.raises(OSError, match="no file named"):
        CLIPVisionModel.from_pretrained(saved / "head")
    assert message in caplog.text


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = tinted("all")
    want = logits(model, "Digits")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model, "Digits"), want)
    assert isinstance(model.trunk.get_submodule(LAYER), SwitchModule)


def test_options_of_the_trunks_own_saving_are_passed_on(tmp_path):
    tinted("head").save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list((tmp_path / "trunk").glob("model-*.safetensors"))) > 1
    assert torch.equal(
        logits(TintedModel.from_pretrained(tmp_path), "Digits"),
        logits(tinted("head"), "Digits"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_is_loaded_alone(kind, saved, tmp_path):
    model = tinted(kind)
    alone = TintedModel.from_pretrained(saved / kind, tasks=["Digits"])
    assert alone.tasks == ("Digits",)
    assert torch.equal(logits(alone, "Digits"), logits(model, "Digits"))
    share = alone.parameter_report()
    assert share["tints"] == model.parameter_report()["per_task"]["Digits"]
    with pytest.raises(ValueError, match="no tint for task 'glue/cola'"):
        alone.set_task("glue/cola")
    alone.save_pretrained(tmp_path)
    assert TintedModel.from_pretrained(tmp_path).tasks == ("Digits",)


def test_folders_without_tints_and_unknown_tasks_are_refused(saved, tmp_path):
    trunk().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is not a tinted model: it has no tinted.json"
    ):
        TintedModel.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"has no tint for \['mnist'\]; it has \['stan"
    ):
        TintedModel.from_pretrained(saved / "head", tasks=["Digits", "mnist"])
    with pytest.raises(ValueError, match="has no tint for"):
        TintedModel.from_pretrained(saved / "head", tasks=[])


def test_a_missing_tint_file_is_named(saved, tmp_path):
    tinted("head").save_pretrained(tmp_path)
    (tmp_path / "tints" / "Digits.safetensors").unlink()
    with pytest.raises(ValueError, match="tinted.json lists the task 'Digits', but"):
        TintedModel.from_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "tints" / "Digits.safetensors")
    with pytest.raises(
        ValueError, match="Digits.safetensors holds no tensors of 'head'"
    ):
        TintedModel.from_pretrained(tmp_path)
    assert TintedModel.from_pretrained(tmp_path, ["stanford-cars"]).tasks


def test_the_folder_has_a_card_and_the_runs_own_card_wins(tmp_path):
    model = tinted("head")
    model.save_pretrained(tmp_path / "short")
    card = (tmp_path / "short" / "README.md").read_text()
    assert "stanford-cars" in card and "TintedModel.from_pretrained" in card
    model.card = "# Mine\n"
    model.save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "README.md").read_text() == "# Mine\n"


def test_the_feature_map_follows_a_changed_head():
    torch.manual_seed(5)
    weights = {"one": torch.randn(4, FEATURES), "two": torch.randn(3, FEATURES)}
    heads = {
        t: ClassificationHead(torch.randn_like(w), torch.randn(len(w)))
        for t, w in weights.items()
    }
    model = TintedModel(trunk(), {"head": heads}, weights)
    features = F.normalize(torch.randn(6, FEATURES), dim=-1)
    for _ in range(2):
        mapped = model.compute_surgery_features(features, "one")[0]
        got = mapped @ weights["one"].t()
        torch.testing.assert_close(got, model.head("one")(features), atol=1e-5, rtol=0)
        with torch.no_grad():
            model.head("one").weight.mul_(-2)
