"""Where a tint may go, and what is said where it may not."""

import pytest
from fusion_bench.models.wrappers.switch import SwitchModule
from torch import nn
from toy_tinting import ToyAdapter, ToyNet, make, tint, toy_pool

from fusion_plugins import TintedModel
from fusion_plugins.merged import sites


class Tied(nn.Module):
    """The output layer is the embedding's transpose; a norm has no parameters."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.mid = nn.Sequential(nn.Linear(3, 3), nn.GELU())
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embedding.weight


def test_patterns_choose_the_outermost_modules_in_order():
    net = ToyNet()
    assert sites.find_sites(net, ["blocks.1"]) == ["blocks.1"]
    assert sites.find_sites(net, ["blocks.[01]"]) == ["blocks.0", "blocks.1"]
    assert sites.find_sites(net, ["blocks.*"]) == [f"blocks.{i}" for i in range(3)]
    assert sites.find_sites(net, ["*.norm", "blocks.0"]) == [
        "blocks.1.norm",
        "blocks.2.norm",
        "blocks.0",
    ]
    assert sites.find_sites(net, ["stem", "stem", "s*"]) == ["stem"]


def test_an_unknown_layer_is_answered_with_near_names():
    with pytest.raises(ValueError, match="no layer is named 'block.1'") as error:
        sites.find_sites(ToyNet(), ["block.1"])
    assert "'blocks.1'" in str(error.value)
    assert "Use 'head', a module path, or a shell-style" in str(error.value)


@pytest.mark.parametrize("path", ["out", "embedding"])
def test_a_layer_with_tied_weights_is_refused_by_both_its_names(path):
    other = {"out": "embedding.weight", "embedding": "out.weight"}[path]
    with pytest.raises(ValueError, match=r"tied weights\). Untie them") as error:
        sites.find_sites(Tied(), [path])
    assert f"'{path}' shares the parameter '{other}'" in str(error.value)
    assert sites.find_sites(Tied(), ["mid"]) == ["mid"]


def test_weights_tied_inside_the_tinted_layer_are_fine():
    net = nn.Sequential(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3)
    )
    net[0][1].weight = net[0][0].weight
    assert sites.find_sites(net, ["0"]) == ["0"]


def test_a_layer_without_parameters_is_refused():
    with pytest.raises(ValueError, match="layer 'mid.1' has no parameters to learn"):
        sites.find_sites(Tied(), ["mid.1"])


def test_a_list_of_layers_is_refused_as_no_layer():
    with pytest.raises(ValueError, match=r"'blocks' is a list of layers.*blocks\.\*"):
        sites.find_sites(ToyNet(), ["blocks"])


@pytest.mark.parametrize(
    "names, text",
    [
        (["a-b", "a_b"], "the name 'a_b', which FusionBench's .* takes for 'a-b'"),
        (["x", "MNIST", "mnist"], "the name 'mnist', which .* takes for 'MNIST'"),
        (["glue/cola", "glue-cola"], "takes for 'glue/cola'. Rename it in the pool"),
        (
            ["v1.5"],
            "the name 'v1.5', which modules cannot have: it is empty, has a '.'",
        ),
        (["training"], "the name 'training', which modules cannot have.*reserved"),
        (["keys"], "the name 'keys', which modules cannot have.*reserved"),
        (["type"], "the name 'type', which modules cannot have.*reserved"),
        ([""], "the name '', which modules cannot have: it is empty"),
        (["x" * 300], "which files cannot have: at most 200 bytes"),
        (["a/b", "a_b"], "takes for 'a/b'"),
    ],
)
def test_task_names_that_a_switch_cannot_tell_apart_are_refused(names, text):
    with pytest.raises(ValueError, match=text):
        sites.check_task_names(names)


def test_usual_task_names_are_fine():
    sites.check_task_names(["stanford-cars", "sun397", "glue/cola", "Food 101"])


def test_the_switch_stands_where_the_layer_was():
    net = ToyNet()
    layers = {task: nn.Linear(8, 8) for task in ("Task-A", "b")}
    model = TintedModel(net, {"blocks.1.mix": layers})
    (switch,) = model.switches
    assert isinstance(switch, SwitchModule) and net.blocks[1].mix is switch
    assert sites.option(switch, "Task-A") is layers["Task-A"]
    assert sites.option(switch, "b") is layers["b"]


def test_mistakes_are_found_before_any_data_is_read(monkeypatch):
    """The run ends at the model, without a teacher pass or preprocessing."""
    algorithm = make(tint="blocks.9")
    asked = []
    monkeypatch.setattr(ToyAdapter, "dataset", lambda *a: asked.append(a))
    with pytest.raises(ValueError, match="no layer is named 'blocks.9'"):
        tint(algorithm)
    pool = toy_pool()
    pool["A-a"], pool["A_a"] = pool.pop("aa"), pool.pop("bb")
    with pytest.raises(
        ValueError,
        match="the name 'A_a', which FusionBench's SwitchModule takes for 'A-a'",
    ):
        tint(algorithm, pool)
    assert asked == []
