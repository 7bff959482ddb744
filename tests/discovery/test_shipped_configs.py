"""Every config we ship composes, can be imported, and hides nothing of FusionBench."""

from pathlib import Path

import pytest
from composing import (
    CONFIG,
    SELECTABLE,
    SHIPPED,
    UPSTREAM,
    compose_file,
    compose_job,
    header_commands,
    is_choice,
    targets,
)
from hydra.utils import get_object
from omegaconf import OmegaConf


def test_these_tests_see_every_file() -> None:
    files = [path for path in CONFIG.rglob("*") if path.is_file()]
    assert len(files) >= 19
    assert len(SHIPPED) == len(files), "Hydra reads only files that end in .yaml"
    assert {path.parts[0] for path in SHIPPED} >= set(SELECTABLE)


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_composes_with_nothing_left_to_fill_in(path: Path) -> None:
    node = compose_file(path)
    assert node
    # Not OmegaConf.missing_keys: it resolves what only a running program can.
    assert "???" not in OmegaConf.to_yaml(node)
    if path == Path("taskpool", "folders.yaml"):  # takes the model pool's data
        assert "${modelpool.data}" in OmegaConf.to_yaml(node)
    elif path.parts[0] in SELECTABLE:  # programs and recipes also need Hydra's choices
        OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_target_can_be_imported(path: Path) -> None:
    found = targets(OmegaConf.to_container(compose_file(path)))
    if is_choice(path):
        assert found
    for target in found:
        assert callable(get_object(target)), target


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_header_says_what_it_is_and_its_command_composes(path: Path) -> None:
    assert (CONFIG / path).read_text(encoding="utf-8").startswith("# ")
    commands = header_commands(path)
    if is_choice(path):
        assert commands, "the header needs a command that works as pasted"
    for overrides in commands:
        compose_job(*overrides)


def test_no_name_clashes_with_upstream() -> None:
    # Lower case: some file systems do not tell the difference.
    upstream = {
        path.relative_to(UPSTREAM).as_posix().lower()
        for path in UPSTREAM.rglob("*.yaml")
    }
    assert len(upstream) > 100
    assert not upstream & {path.as_posix().lower() for path in SHIPPED}


@pytest.mark.parametrize("base", ["ties_merging", "wudi/wudi", "dare/simple_average"])
def test_awd_takes_any_base_of_fusion_bench(base: str) -> None:
    method = compose_job("method=awd", f"method@method.base={base}").method
    assert method._target_ == "fusion_plugins.AWDAlgorithm"
    assert method.base == compose_job(f"method={base}").method
