"""The methods that can be exported, and their names in FusionBench."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .errors import ExportError


@dataclass(frozen=True)
class Method:
    """One method here and there.

    Attributes:
        name: Its package here, `fusion_plugins/<name>/`.
        class_name: The algorithm class in `<name>/algorithm.py`.
        home: Its package in FusionBench, `fusion_bench/method/<home>/`; also the name
            of its config folder, its page and its test.
        title: The page's entry in the navigation.
        wording: Sentences that hold only here -> what to say there.
    """

    name: str
    class_name: str
    home: str
    title: str
    wording: Mapping[str, str] = field(default_factory=dict)


METHODS = {
    method.name: method
    for method in (
        Method("awd", "AWDAlgorithm", "awd", "AWD"),
        # FusionBench has a package `adamerging`: one class per model family.
        Method(
            "adamerging",
            "AdaMergingAlgorithm",
            "unified_adamerging",
            "AdaMerging (unified)",
        ),
        Method(
            "tinting",
            "TintingAlgorithm",
            "tinting",
            "Model Tinting",
            {"(all of ours do)": "(FusionBench's CLIP task pool does for heads)"},
        ),
    )
}


def find_method(name: str, home: str | None = None) -> Method:
    """A method by its name here, under another name there if `home` is given.

    Raises:
        ExportError: Unknown method, or `home` is no Python name.
    """
    if name not in METHODS:
        raise ExportError(
            f"unknown method '{name}', expected one of {sorted(METHODS)}."
        )
    if home is None:
        return METHODS[name]
    if not home.isidentifier() or not home.islower() or home.startswith("_"):
        raise ExportError(
            f"--name is {home!r}, expected a lower-case Python name such as"
            f" '{METHODS[name].home}': it names a package, a config folder and a page."
        )
    return replace(METHODS[name], home=home)
