"""Names of options, and the grid that their lists span."""

import re

import pytest

from fusion_plugins import AWDAlgorithm, SelectAlgorithm
from fusion_plugins.selection.candidates import Grid

TIES = {"_target_": "fusion_bench.method.TiesMergingAlgorithm", "scaling_factor": 0.3}
TIES |= {"threshold": 20, "remove_keys": [], "merge_func": "sum"}
AWD = {"_target_": "fusion_plugins.AWDAlgorithm", "alpha": 0.1, "lr": 0.01}
OVER_TIES = AWD | {"base": TIES}
TWICE = AWD | {"base": OVER_TIES}
SELECT = {"_target_": "fusion_plugins.SelectAlgorithm", "over": None, "base": OVER_TIES}


@pytest.mark.parametrize(
    ("config", "name", "path"),
    [
        (TIES, "scaling_factor", "scaling_factor"),
        (OVER_TIES, "scaling_factor", "base.scaling_factor"),
        (OVER_TIES, "base.threshold", "base.threshold"),
        (OVER_TIES, "alpha", "alpha"),
        (TWICE, "alpha", "alpha"),  # a whole name before a last part
        (TWICE, "base.alpha", "base.alpha"),
        (TWICE, "scaling_factor", "base.base.scaling_factor"),
    ],
)
def test_an_option_is_named_by_its_path_or_its_last_part(config, name, path):
    grid = Grid.read(config, {name: [7]})
    assert ".".join(grid.options[0].path) == path
    node = grid.method({name: 7})
    for part in path.split("."):
        node = node[part]
    assert node == 7


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        (OVER_TIES | {"scaling": "auto"}, True),
        (OVER_TIES | {"scaling": None}, False),
        (SELECT, True),
        (SELECT | {"over": {"base.alpha": [0.1]}}, False),
        (AWD | {"scaling": "auto", "base": OVER_TIES}, True),
    ],
)
def test_an_option_that_a_part_chooses_itself_is_no_candidate(config, chosen):
    """The candidates would not be the model that comes out."""
    if not chosen:
        assert Grid.scan(config, "over=null").options[0].path[-1] == "scaling_factor"
        return
    with pytest.raises(ValueError, match="'scaling_factor' changes nothing, .* itself"):
        Grid.scan(config, "over=null")
    with pytest.raises(ValueError, match="over: 'scaling_factor' changes nothing"):
        Grid.read(config, {"scaling_factor": [0.1, 0.2]})


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {},
            "over lists no option, expected lists for some of alpha, lr, base, base.sca",
        ),
        ({"alpha": []}, r"over.alpha is \[\], expected a list of values"),
        ({"alpha": 0.1}, "over.alpha is 0.1, expected a list of values"),
        ({"alhpa": [1]}, "no option 'alhpa', .* Did you mean 'alpha'?"),
        ({"scaling_facto": [1]}, "Did you mean 'scaling_factor'?"),
        ({"base.treshold": [1]}, "Did you mean 'base.threshold'?"),
        ({"_target_": [1]}, "there is no option '_target_'"),
        (
            {"threshold": [1], "base.threshold": [2]},
            "over: 'threshold' stands there twice; list it once.",
        ),
    ],
)
def test_what_is_wrong_with_over_is_said_in_one_line(over, message):
    with pytest.raises(ValueError, match=message) as error:
        SelectAlgorithm(base=OVER_TIES, over=over)
    assert "\n" not in str(error.value)


def test_an_ambiguous_name_lists_what_it_may_be():
    config = {"first": {"rate": 1}, "second": {"rate": 2}}
    message = "over: 'rate' may be 'first.rate' or 'second.rate'. Write the whole name."
    with pytest.raises(ValueError, match=re.escape(message)):
        Grid.read(config, {"rate": [1]})


def test_the_grid_is_all_combinations_and_a_scaling_varies_fastest():
    over = {"scaling_factor": [0.1, 0.2], "alpha": [0, 0.1]}
    found = list(Grid.read(OVER_TIES, over).settings())
    assert found == [
        {"alpha": alpha, "scaling_factor": s} for alpha in (0, 0.1) for s in (0.1, 0.2)
    ]


@pytest.mark.parametrize(
    ("config", "over", "scaled"),
    [
        (TIES, {"scaling_factor": [0.1, 0.2]}, True),
        (TWICE, {"scaling_factor": [0.1, 0.2]}, True),
        (TIES, {"scaling_factor": [0.1]}, False),  # nothing to gain
        (TIES, {"threshold": [10, 20]}, False),
        (
            TIES | {"_target_": "fusion_bench.method.DareTiesMerging"},
            {"scaling_factor": [0.1, 0.2]},
            False,
        ),
    ],
)
def test_only_known_methods_are_merged_once_and_scaled(config, over, scaled):
    assert (Grid.read(config, over).scaling is not None) is scaled


def test_a_method_object_stands_for_its_config():
    algorithm = SelectAlgorithm(base=AWDAlgorithm(alpha=0.2), over={"alpha": [0.3]})
    config = algorithm.options.grid.method({"alpha": 0.3})
    assert config["_target_"].endswith("AWDAlgorithm") and config["alpha"] == 0.3
