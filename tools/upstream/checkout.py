"""Where things are in a FusionBench checkout, or in a copy of its installed release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .methods import ExportError

_CONFIG_FOLDERS = {"config": "checkout", "fusion_bench_config": "installed release"}
_MAIN_CONFIG = "fabric_model_fusion.yaml"


@dataclass(frozen=True)
class Checkout:
    """A FusionBench tree that takes a method.

    Attributes:
        root: Its top folder.
        config: Config root: `config/` or `fusion_bench_config/`.
        layout: What was detected.
        nav: `mkdocs.yml`; None in an installed release, which has no pages.
        tests: Folder for the test; None likewise.
    """

    root: Path
    config: Path
    layout: str
    nav: Path | None
    tests: Path | None

    @property
    def exports(self) -> Path:
        return self.root / "fusion_bench" / "method" / "__init__.py"


def find_checkout(root: Path) -> Checkout:
    """Recognise a tree by what it holds.

    Raises:
        ExportError: It is not FusionBench, or a checkout without pages.
    """
    root = root.resolve()
    needed = "fusion_bench/method/__init__.py"
    if not (root / needed).is_file():
        raise ExportError(
            f"{root} is not a FusionBench checkout: it has no {needed}. Give the folder"
            " that holds `fusion_bench/`."
        )
    config, layout = _config(root)
    nav, tests = root / "mkdocs.yml", root / "tests"
    if layout == "checkout":
        if not nav.is_file():
            raise ExportError(
                f"{root} has config/ like a checkout, but no mkdocs.yml to list the page"
                " in. Give a complete checkout."
            )
        return Checkout(root, config, layout, nav, tests)
    return Checkout(root, config, layout, None, tests if tests.is_dir() else None)


def _config(root: Path) -> tuple[Path, str]:
    for name, layout in _CONFIG_FOLDERS.items():
        config = root / name
        if (config / _MAIN_CONFIG).is_file() and (config / "method").is_dir():
            return config, layout
    raise ExportError(
        f"{root} is not a FusionBench checkout: neither"
        f" {' nor '.join(f'{name}/' for name in _CONFIG_FOLDERS)} holds {_MAIN_CONFIG} and"
        " method/."
    )
