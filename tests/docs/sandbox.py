"""Run documented commands inside the test process, in a folder made for them."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from documented import REPOSITORY
from given import given
from hydra.core.global_hydra import GlobalHydra

_INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)

# Options that make a documented run short, by what its method or program is.
REDUCTIONS = {
    "adamerging": ["method.steps=2"],
    "awd_adamerging": ["method.steps=2"],
    "tinting": ["method.rounds=2"],
}

# Programs that are run, with what makes them short; the others must accept their options.
SHORT_PROGRAMS = {
    ("demo", "run"): ["--methods", "awd", "--root", "POOL"],
    ("pools",): [],
    ("cite",): [],
}

# Stands for the file that a page tells its readers to write.
_OWN_POOL = (
    "_target_: fusion_bench.modelpool.CausalLMPool\nmodels: {}\ntokenizer: null\n"
)


class Sandbox:
    """A working folder with what the pages take as given.

    `models/base`, `models/mnist`, `models/svhn` are model folders; POOL, OUT and FOLDER
    stand for folders; pools named `demo` are the tiny one of the tests.
    """

    def __init__(self, folder: Path, pool: Path):
        self.folder, self.pool = folder, Path(pool)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        models = self.folder / "models"
        models.mkdir()
        experts = sorted((self.pool / "experts").iterdir())
        (self.folder / "own" / "modelpool").mkdir(parents=True)
        (self.folder / "own" / "modelpool" / "my_models.yaml").write_text(_OWN_POOL)
        (models / "base").symlink_to(self.pool / "pretrained")
        for name, expert in zip(("mnist", "svhn"), experts[:2], strict=True):
            (models / name).symlink_to(expert)
        patch = self._stack.enter_context(_monkeypatch())
        patch.chdir(self.folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("FUSION_PLUGINS_DEMO_ROOT", str(self.folder / "cache"))
        return self

    def __exit__(self, *error):
        self._stack.close()

    # -- Python ---------------------------------------------------------------------

    def run_python(self, text: str, page: Path) -> None:
        """All blocks of one page, in order, in one namespace."""
        text = _INCLUDED.sub(lambda m: (REPOSITORY / m[1]).read_text(), text)
        code = compile(text, str(page), "exec")
        with self._tiny_pools():
            exec(code, given(page, self.folder))  # noqa: S102

    def run_script(self, script: Path, arguments: list[str]) -> None:
        with self._tiny_pools(), _monkeypatch() as patch:
            words = [str(self.pool) if a == "POOL" else a for a in arguments]
            patch.setattr(sys, "argv", [str(script), *words])
            runpy.run_path(str(script), run_name="__main__")

    @contextlib.contextmanager
    def _tiny_pools(self):
        """`demo_modelpool()` and `demo_taskpool()` give the tiny pool."""
        import fusion_plugins.demo as demo

        with _monkeypatch() as patch:
            for name in ("demo_modelpool", "demo_taskpool"):
                patch.setattr(
                    demo, name, self._on_tiny(getattr(demo, name)), raising=False
                )
            yield

    def _on_tiny(self, function):
        return lambda root=None, *rest, **named: function(
            root or str(self.pool), *rest, **named
        )

    # -- shell ----------------------------------------------------------------------

    def run_command(self, words: list[str], needs: str | None) -> None:
        program = words[0]
        if program == "fusion_bench":
            self._fusion_bench(words[1:], needs)
        elif needs is not None or words[:2] == ["pip", "install"]:
            return  # cannot be tried here without what it needs
        elif program == "make":
            _dry_run_make(words)
        elif program in ("cd", "export") or words[:2] == ["git", "clone"]:
            return
        elif program == "python" and words[1] == "-m":
            self._module(words[2], words[3:])
        elif program == "fusion-plugins":
            self._fusion_plugins(words[1:])
        elif program == "python":
            _parse_only(REPOSITORY / words[1], words[2:])
        else:
            raise AssertionError(f"no test knows how to run: {' '.join(words)}")

    def _fusion_bench(self, arguments: list[str], needs: str | None) -> None:
        from fusion_bench.scripts.cli import _hydra_main

        if "compare" in arguments:  # tests/compare runs them; here they must make sense
            arguments = [a for a in arguments if "launcher" not in a] + ["dry_run=true"]
        elif needs is not None or not self._is_tiny(arguments):
            own = f"hydra.searchpath=[file://{self.folder}/own]"
            arguments = ["--cfg", "job", own, *arguments]
        else:
            arguments = [self._own(word) for word in arguments] + self._reduced(
                arguments
            )
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        self._in_process(_hydra_main, [*arguments, *quiet])

    def _is_tiny(self, arguments: list[str]) -> bool:
        """Whether there is a tiny pool here to run the command on."""
        pools = [a for a in arguments if a.startswith(("modelpool=", "+modelpool"))]
        return all(
            "=demo" == a[-5:] or "_template" in a or "models/" in a for a in pools
        )

    def _own(self, word: str) -> str:
        return word.replace("=POOL", f"={self.pool}")

    def _reduced(self, arguments: list[str]) -> list[str]:
        extra = []
        for group in ("modelpool", "taskpool"):
            rooted = any(a.startswith(f"{group}.root=") for a in arguments)
            if f"{group}=demo" in arguments and not rooted:
                extra.append(f"{group}.root={self.pool}")
        method = next((a for a in arguments if a.startswith("method=")), "method=")
        for prefix, options in REDUCTIONS.items():
            if method.removeprefix("method=").startswith(prefix):
                extra += options
        return extra

    def _module(self, module: str, arguments: list[str]) -> None:
        """Let the parser judge; it exits before anything is done."""
        with _monkeypatch() as patch:
            patch.setattr(sys, "argv", [module, *arguments, "--help"])
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                assert not end.code, f"{module} {arguments} ended with {end.code}"

    def _fusion_plugins(self, arguments: list[str]) -> None:
        """Run where a reduction is known, else let the parser judge the arguments."""
        from fusion_plugins.cli import main
        from fusion_plugins.cli.program import make_parser

        for known, reduction in SHORT_PROGRAMS.items():
            if tuple(arguments[: len(known)]) == known:  # a repeated option's last wins
                words = [self._own(f"={w}")[1:] for w in [*arguments, *reduction]]
                assert main(words) == 0
                return
        if "--help" not in arguments:
            make_parser().parse_args(arguments)

    def _in_process(self, main, arguments: list[str]) -> None:
        threads = torch.get_num_threads()
        with _monkeypatch() as patch:
            patch.setattr(sys, "argv", ["fusion_bench", *arguments])
            GlobalHydra.instance().clear()
            try:
                main()
            finally:
                GlobalHydra.instance().clear()
                torch.set_num_threads(threads)


@contextlib.contextmanager
def _monkeypatch():
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        yield patch


def _dry_run_make(words: list[str]) -> None:
    if shutil.which("make") is None:
        return
    done = subprocess.run(
        ["make", "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _parse_only(script: Path, arguments: list[str]) -> None:
    """A script's own parser must accept the options; what it measures takes minutes."""
    assert script.is_file(), f"{script} does not exist"
    done = subprocess.run(
        [sys.executable, str(script), *arguments, "--help"],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
