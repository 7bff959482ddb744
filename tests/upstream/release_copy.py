"""A copy of the installed FusionBench laid out as a checkout, and a Python without us."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import fusion_bench

SITE = Path(fusion_bench.__file__).resolve().parents[1]
NAV = """\
site_name: FusionBench
nav:
  - Algorithms:
      - Model Merging:
          - Task Arithmetic: algorithms/task_arithmetic.md
          # - a page that is not written yet
          - AdaMerging: algorithms/adamerging.md

      - Model Mixing:
          - PWE MoE: algorithms/pwe_moe.md
plugins:
  - search
"""
_OURS = ("fusion_plugins", "_fusion_plugins", "__editable__", "hydra_plugins")
_COPIED = ("fusion_bench", "fusion_bench_config")


def upstream_config() -> Path:
    """FusionBench's config root: a release has it under another name than a checkout."""
    found = (SITE / name for name in ("fusion_bench_config", "config"))
    return next(path for path in found if path.is_dir())


def copy_release(root: Path) -> Path:
    """The whole package and its configs. Its compiled files come along, to save time."""
    shutil.copytree(SITE / "fusion_bench", root / "fusion_bench")
    shutil.copytree(upstream_config(), root / "config")
    return add_checkout_files(root)


def small_release(root: Path) -> Path:
    """Only what an export looks at."""
    lists = root / "fusion_bench" / "method" / "__init__.py"
    lists.parent.mkdir(parents=True)
    shutil.copy(SITE / "fusion_bench" / "method" / "__init__.py", lists)
    (root / "config" / "method").mkdir(parents=True)
    return add_checkout_files(root)


def add_checkout_files(root: Path) -> Path:
    (root / "docs" / "algorithms").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "mkdocs.yml").write_text(NAV)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Path -> content of every file but compiled ones."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def link_other_packages(folder: Path) -> Path:
    """Everything installed except FusionBench and this project, and no path files."""
    folder.mkdir()
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    for site in sorted({SITE, *map(Path, own)}):
        for path in site.iterdir():
            if path.name.startswith(_OURS) or path.name in _COPIED:
                continue
            if path.suffix != ".pth" and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


def run_isolated(root: Path, packages: Path, *arguments: str | Path) -> None:
    """Run Python in the copy; -S keeps site-packages and its path files out.

    Raises:
        AssertionError: It failed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "HYDRA_", "FUSION_BENCH_"))
    }
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(root), str(packages)]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-S", *map(str, arguments)]
    run = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
