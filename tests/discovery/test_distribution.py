"""What `build` makes holds every file, and works where there is no checkout."""

import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from start_program import REPOSITORY, start

from fusion_plugins.common import EXTRAS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel built from that archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    run = start([*command, REPOSITORY], REPOSITORY)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and this one's other packages, but no checkout.

    The others come through a path file. Path files among them are not followed, so an
    editable install stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scheme = "nt" if sys.platform == "win32" else "posix_prefix"
    site = Path(sysconfig.get_path("purelib", scheme, vars={"base": str(folder)}))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run = start([*pip, "--target", site, wheel], folder)
    assert run.returncode == 0, run.stderr
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "other_packages.pth").write_text("\n".join(sorted(here)) + "\n")
    return folder


def source_files(*folders: str) -> dict[str, bytes]:
    """Path in the checkout -> content, for every file but caches and hidden ones."""
    return {
        path.relative_to(REPOSITORY).as_posix(): path.read_bytes()
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }


def test_the_wheel_holds_every_module_and_config(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    modules = source_files("fusion_plugins", "hydra_plugins")
    configs = {
        f"fusion_plugins/{name}": data for name, data in source_files("config").items()
    }
    assert "hydra_plugins/fusion_plugins_searchpath.py" in modules
    assert len(configs) >= 19
    shipped = {k: v for k, v in content.items() if ".dist-info/" not in k}
    assert shipped == modules | configs


def test_the_wheel_asks_for_optional_packages_in_extras_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    assert set(EXTRAS.values()) < set(metadata.get_all("Provides-Extra"))
    wanted = map(Requirement, metadata.get_all("Requires-Dist"))
    core = {r.name for r in wanted if r.marker is None or r.marker.evaluate()}
    assert {"fusion-bench", "torch"} < core
    left_out = {"open-clip-torch", "torchvision", "matplotlib", "jinja2"}
    assert core.isdisjoint(left_out | {"scikit-learn", "peft", "shtab"})


def test_the_source_archive_holds_the_tests_and_configs(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    folders = ("config", "tests", "fusion_plugins", "hydra_plugins")
    assert names >= set(source_files(*folders))
    assert names >= {"pyproject.toml", "README.md", "LICENSE", "constraints-lowest.txt"}


def test_the_wheel_works_without_the_checkout(
    environment: Path, tmp_path: Path
) -> None:
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    job = ["method=awd", "modelpool=clip-vit-l14_TALL20", "taskpool=clip-vit-b16_TA8"]
    command = [environment / scripts / "python", "-m", "fusion_bench.scripts.cli"]
    run = start([*command, *job, "--info", "all"], tmp_path)
    assert run.returncode == 0, run.stderr

    cells = [line.split("|") for line in run.stdout.splitlines() if "file://" in line]
    folders = {cell[1].strip(): cell[2].strip() for cell in cells}
    assert set(folders) == {"main", "fusion-plugins"}
    installed = Path(folders["fusion-plugins"].removeprefix("file://"))
    assert installed.parts[-2:] == ("fusion_plugins", "config")
    assert environment.resolve() in installed.parents
    assert str(REPOSITORY / "config") not in run.stdout
    assert "_target_: fusion_plugins.AWDAlgorithm" in run.stdout
    assert "tanganke/clip-vit-large-patch14_rendered-sst2" in run.stdout
    assert "base_model: openai/clip-vit-base-patch16" in run.stdout
