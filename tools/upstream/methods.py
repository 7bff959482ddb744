"""The methods that can be exported, and their names in FusionBench."""

from __future__ import annotations

from dataclasses import dataclass

# Families of pools that need no pool class but FusionBench's.
_FAMILIES = tuple(
    f"pools/families/{name}.py"
    for name in (
        "causal_lm",
        "clip",
        "gpt2",
        "image_classification",
        "seq2seq",
        "sequence_classification",
    )
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
        also: Modules that travel with it although nothing it imports names them:
            families of pools, which are found by walking their folder, and task pools.
    """

    name: str
    class_name: str
    home: str
    title: str
    also: tuple[str, ...] = ()


METHODS = {
    method.name: method
    for method in (
        # Works on any pool's models as they are loaded: needs no family.
        Method("awd", "AWDAlgorithm", "awd", "AWD"),
        # FusionBench has a package `adamerging`: one class per model family.
        Method(
            "adamerging",
            "AdaMergingAlgorithm",
            "unified_adamerging",
            "AdaMerging (unified)",
            _FAMILIES,
        ),
        Method(
            "tinting",
            "TintingAlgorithm",
            "tinting",
            "Model Tinting",
            (*_FAMILIES, "taskpool/clip.py"),
        ),
    )
}
