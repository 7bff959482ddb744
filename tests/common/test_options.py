"""An option stands once: default, check, signature, saved config."""

import inspect
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
import torch
from fusion_bench import BaseAlgorithm
from omegaconf import OmegaConf

from fusion_plugins.common.options import (
    Options,
    WithOptions,
    choice,
    flag,
    integer,
    like,
    mapping,
    number,
    path,
    patterns,
)


class Kind(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True, kw_only=True)
class OwnerOptions(Options):
    size: float = number(0.5, high=1)
    share: float = number(1.0, high=1, open_low=True)
    limit: float | None = number(None)
    count: int = integer(3, low=1)
    most: int | None = integer(None)
    kind: Kind = choice(Kind.SMALL)
    mode: str | bool = choice("auto", ("auto", True, False))
    quick: bool = flag(False)
    keep: tuple[str, ...] = patterns()
    tasks: dict | None = mapping("{a: {}}")
    folder: str | None = path()


@dataclass(frozen=True, kw_only=True)
class OtherOptions(OwnerOptions):
    size: float = like(OwnerOptions, "size", 0.25)


class Owner(WithOptions, BaseAlgorithm):
    Options = OwnerOptions

    def run(self, modelpool):
        return self.options


@pytest.mark.parametrize(
    "given",
    [
        {"size": 0},
        {"size": 1.0},
        {"share": 1e-9},
        {"limit": 1e9},
        {"count": 1},
        {"most": 0},
        {"mode": True},
        {"mode": "auto"},
        {"quick": True},
        {"keep": ["a", "b*"]},
        {"keep": ()},
        {"tasks": {}},
        {"folder": "a b"},
    ],
)
def test_what_is_right_is_taken_as_it_is(given):
    ((name, value),) = given.items()
    got = getattr(Owner(**given).options, name)
    assert got == (tuple(value) if name == "keep" else value)
    assert type(got) is not bool or type(value) is bool


WRONG = [
    ({"size": 1.1}, "size is 1.1, expected a number in [0, 1]."),
    ({"size": -0.1}, "size is -0.1, expected a number in [0, 1]."),
    ({"size": float("nan")}, "size is nan, expected a number in [0, 1]."),
    ({"size": True}, "size is True, expected a number in [0, 1]."),
    ({"size": "0.3"}, "size is '0.3', expected a number in [0, 1]."),
    ({"size": None}, "size is None, expected a number in [0, 1]."),
    ({"share": 0}, "share is 0, expected a number in (0, 1]."),
    ({"limit": float("inf")}, "limit is inf, expected a number in [0, inf)."),
    ({"count": 0}, "count is 0, expected a whole number >= 1."),
    ({"count": 1.0}, "count is 1.0, expected a whole number >= 1."),
    ({"most": "1"}, "most is '1', expected a whole number >= 0."),
    ({"kind": "huge"}, "kind is 'huge', expected one of ['small', 'large']."),
    ({"mode": 1}, "mode is 1, expected one of ['auto', True, False]."),
    ({"quick": None}, "quick is None, expected one of [True, False]."),
    ({"quick": "true"}, "quick is 'true', expected one of [True, False]."),
    ({"keep": "*.bias"}, "keep is '*.bias', expected a list of patterns such as"),
    ({"keep": [1]}, "keep is [1], expected a list of patterns such as"),
    ({"keep": [""]}, "keep is [''], expected a list of patterns such as"),
    ({"tasks": ["a"]}, "tasks is ['a'], expected a mapping: {a: {}}."),
    ({"folder": ""}, "folder is '', expected a path."),
    ({"folder": 3}, "folder is 3, expected a path."),
    ({"folder": "a\0b"}, "a path has no NUL character."),
]


@pytest.mark.parametrize("given, text", WRONG)
def test_what_is_wrong_is_named_with_what_is_allowed(given, text):
    with pytest.raises(ValueError) as error:
        Owner(**given)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_option_is_named_with_the_nearest_known_one():
    with pytest.raises(
        TypeError, match="Owner has no option 'siez'. Did you mean 'size'"
    ):
        Owner(siez=1, other=2)
    Owner(size=1, _usage_="x", _version_="1", _recursive_=False)


def test_configs_become_plain_values_and_enums_members():
    config = OmegaConf.create(
        {"keep": ["a"], "tasks": {"b": {"c": 1}}, "kind": "large"}
    )
    options = Owner(**config).options
    assert options.keep == ("a",) and options.tasks == {"b": {"c": 1}}
    assert type(options.tasks["b"]) is dict and options.kind is Kind.LARGE
    assert Owner(kind=Kind.LARGE).options.kind is Kind.LARGE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 2**32}, "count is 4294967296, expected a whole .* >= 1 and < 2.32"),
        ({"limit": 10**400}, r"limit is 10+, expected a number in \[0, inf\)"),
        ({"keep": torch.tensor(1.0)}, r"keep is tensor\(1.\), expected a list of"),
        ({"folder": "None"}, "folder is the text 'None'; no path is null"),
        (
            {"folder": "a/" + "b" * 256},
            "folder: 'b+...' in its path is longer than 255",
        ),
    ],
)
def test_what_no_machine_can_do_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Owner(**given)


def test_the_saved_config_is_what_was_given(tmp_path):
    owner = Owner(size=1, keep=["a"], kind="large")
    owner.to_yaml(tmp_path / "owner.yaml")
    saved = OmegaConf.load(tmp_path / "owner.yaml")
    assert saved.size == 1 and saved.keep == ["a"] and saved.kind == "large"
    assert saved.count == 3 and saved.limit is None and saved.quick is False
    options = {k: v for k, v in saved.items() if not k.startswith("_")}
    assert Owner(**options).options == owner.options


def test_the_signature_shows_every_option_with_its_default():
    shown = inspect.signature(Owner).parameters
    assert shown["size"].default == 0.5 and shown["kind"].default == "small"
    assert set(shown) == set(OwnerOptions.__dataclass_fields__)


def test_an_option_like_another_keeps_its_check():
    assert OtherOptions().size == 0.25 and OwnerOptions().size == 0.5
    with pytest.raises(ValueError, match="size is 2"):
        OtherOptions(size=2)


def test_numpys_numbers_are_read_and_saved_as_pythons():
    nested = {"a": {"share": np.float64(0.25)}}
    given = {"size": np.float32(0.5), "count": np.int64(5), "quick": np.bool_(True)}
    owner = Owner(**given, tasks=nested)
    assert (owner.options.size, owner.options.count) == (0.5, 5)
    assert owner.options.quick is True and type(owner.options.size) is float
    config = OmegaConf.to_container(owner.config)
    assert config["count"] == 5 and config["tasks"] == {"a": {"share": 0.25}}
    with pytest.raises(ValueError, match="count is 2.0, expected a whole number >= 1"):
        Owner(count=np.float64(2))
