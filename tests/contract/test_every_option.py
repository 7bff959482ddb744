"""Every option of every method refuses what it cannot be, in one line that names it."""

from dataclasses import fields
from pathlib import Path

import pytest
from fusion_bench.utils import instantiate
from fusion_bench.utils.instantiate_utils import set_print_function_call
from hydra.utils import get_object
from omegaconf import OmegaConf
from test_contract import METHODS, composed

NAN, INF = float("nan"), float("inf")
NUMBERS = ["a", True, NAN, INF, -1e9, 1e400, [0.1], {"a": 1}]
WHOLE = ["a", True, 1.5, -1, NAN, [1], {"a": 1}]
# The type an option is declared with -> values that are none of it, or out of its range.
WRONG = {
    "float": [*NUMBERS, None],
    "float | None": NUMBERS,
    "int": [*WHOLE, None],
    "int | None": WHOLE,
    "bool": ["yes", 1, 0.0, None, [True], {}],
    "bool | None": ["yes", 1, [True], {}],
    "str": ["nonsense", 3, None, True, [], {}],
    "float | str": [*NUMBERS, None],
    "str | bool": ["nonsense", 3, None, [], {}],
    "str | None": ["", 3, True, [], {}, "a\0b"],
    "BatchNorm": ["nonsense", 3, None, True, [], {}],
    "tuple[str, ...]": ["", 3, True, {"a": 1}, [3], [""], [None]],
    "dict[str, Any] | None": ["a", 3, True, [1], 0.5],
    "Any": ["task_arithmetic", 3, True, [], {"scaling": 1}],
}
# A single name is a tint, and a path may be any text.
RIGHT = {("resume", "nonsense")}
PLAIN = {"seed": [*WHOLE, 2**70], "tint": ["", 3, True, {"a": 1}, [3], [""], [], None]}


def wrong_values(entry) -> list:
    known = PLAIN.get(entry.name, WRONG[str(entry.type)])
    if entry.default is None and entry.name not in PLAIN:  # a preset gives it
        known = [value for value in known if value is not None]
    return [v for v in known if not any((entry.name, v) == right for right in RIGHT)]


def cases() -> list[tuple[str, str, object]]:
    found = []
    for method in METHODS:
        kind = get_object(composed(method)._target_)
        for entry in fields(kind.Options):
            found += [(method, entry.name, value) for value in wrong_values(entry)]
    return found


def test_wrong_values_are_refused_by_name_before_anything_else():
    configs = {m: OmegaConf.to_container(composed(m), resolve=True) for m in METHODS}
    refused, problems = 0, []
    for method, option, value in cases():
        config = configs[method] | {option: value}
        try:
            get_object(config.pop("_target_"))(**config)
            problems.append(f"{method}: {option}={value!r} is accepted")
        except (TypeError, ValueError) as error:
            if option not in str(error) or "\n" in str(error):
                problems.append(f"{method}: {option}={value!r}: {error}")
            refused += 1
    assert problems == []
    assert refused >= 300


def test_every_method_of_the_folder_is_tried():
    folder = Path(__file__).parents[2] / "config" / "method"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option_is_refused(method):
    config = OmegaConf.to_container(composed(method), resolve=True) | {"stranger": 1}
    with pytest.raises(Exception, match="has no option 'stranger'"):
        with set_print_function_call(False):
            instantiate(config)
