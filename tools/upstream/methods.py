"""The methods that can be exported, and their names in FusionBench."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Families of pools that need nothing of our own pool classes.
_FAMILIES = (
    "causal_lm",
    "clip",
    "gpt2",
    "image_classification",
    "seq2seq",
    "sequence_classification",
)


class ExportError(Exception):
    """An export cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Method:
    """One method here and there.

    Attributes:
        name: Its room here, `fusion_plugins/<name>/`.
        class_name: The algorithm class in `<name>/algorithm.py`.
        home: Its package in FusionBench, `fusion_bench/method/<home>/`; also the name
            of its config folder, its page and its test.
        title: The page's entry in the navigation.
        families: Files of `pools/families/` that travel with it.
    """

    name: str
    class_name: str
    home: str
    title: str
    families: tuple[str, ...] = _FAMILIES


METHODS = {
    method.name: method
    for method in (
        # Works on any pool's models as they are loaded.
        Method("awd", "AWDAlgorithm", "awd", "AWD", families=()),
        # FusionBench has a package `adamerging`: one class per model family.
        Method(
            "adamerging",
            "AdaMergingAlgorithm",
            "unified_adamerging",
            "AdaMerging (unified)",
        ),
        Method("tinting", "TintingAlgorithm", "tinting", "Model Tinting"),
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
