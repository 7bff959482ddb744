"""Run documented commands inside the test process, in a folder made for them."""

from __future__ import annotations

import contextlib
import re
import runpy
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from documented import REPOSITORY
from given import given
from hydra.core.global_hydra import GlobalHydra

from fusion_plugins.cli import main

_INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)

# The first and the last value of an option that a sweep varies.
_ENDS = re.compile(r"(?<==)([\w.]+)(?:,[\w.]+)+?,([\w.]+)$")

# Options that make a documented run short, by what its method or program is.
REDUCTIONS = {
    "adamerging": ["method.steps=2"],
    "awd_adamerging": ["method.steps=2"],
    "tinting": ["method.rounds=2"],
}

# Programs that are run, with what makes them short; the others must accept their options.
SHORT_PROGRAMS = {
    ("fusion-plugins", "demo", "run"): ["--methods", "awd", "--root", "POOL"],
    ("fusion-plugins", "pools"): [],
    ("fusion-plugins", "cite"): [],
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
        """`demo_modelpool()`, `demo_openclip_taskpool()` and so on give the tiny pool."""
        import fusion_plugins.demo as demo

        roots = {"demo": lambda: self.pool, "demo_openclip": self._openclip_pool}
        with _monkeypatch() as patch:
            for family, root in roots.items():
                for name in (f"{family}_modelpool", f"{family}_taskpool"):
                    small = self._on_tiny(getattr(demo, name), root)
                    patch.setattr(demo, name, small, raising=False)
            yield

    def _openclip_pool(self) -> Path:
        from fusion_plugins.demo.openclip_build import export_pool

        root = self.folder / "openclip-pool"
        return root if root.exists() else export_pool(self.pool, root)

    def _on_tiny(self, function, own: Callable[[], Path]):
        return lambda root=None, *rest, **named: function(
            root or str(own()), *rest, **named
        )

    # -- shell ----------------------------------------------------------------------

    def run_command(self, words: list[str], needs: str | None) -> None:
        if words[0] == "fusion_bench":
            self._fusion_bench(words[1:], needs)
        elif needs is not None or not self._run_short(words):
            self.accept(words)

    def accept(self, words: list[str]) -> None:
        """Let the program judge its arguments, without doing what they say."""
        match words:
            case ["cd" | "export", *_] | ["git", "clone", *_]:
                pass
            case ["pip" | ".venv/bin/pip", "install", *_]:
                pass
            case ["make", *targets]:
                _dry_run_make(targets)
            case ["fusion-plugins", *arguments]:
                _parse_only(lambda: main(arguments), words)
            case ["python", "-m", module, *_]:
                run = partial(runpy.run_module, module, run_name="__main__")
                _parse_only(run, words[2:])
            case ["python", script, *_]:
                path = str(REPOSITORY / script)
                _parse_only(
                    partial(runpy.run_path, path, run_name="__main__"), words[1:]
                )
            case _:
                raise AssertionError(f"no test knows how to run: {' '.join(words)}")

    def _run_short(self, words: list[str]) -> bool:
        """Run a command for which a reduction is known; of a repeated option the last wins."""
        for known, reduction in SHORT_PROGRAMS.items():
            if tuple(words[: len(known)]) == known:
                own = [self._own(f"={w}")[1:] for w in [*words[1:], *reduction]]
                assert main(own) == 0
                return True
        return False

    def _fusion_bench(self, arguments: list[str], needs: str | None) -> None:
        from fusion_bench.scripts.cli import _hydra_main

        if {"compare", "own_experts"} & set(
            arguments
        ):  # tests/compare runs them; here they must make sense
            arguments = [a for a in arguments if "launcher" not in a] + ["dry_run=true"]
            if "--multirun" in arguments:
                arguments = [_ENDS.sub(r"\1,\2", word) for word in arguments]
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


def _dry_run_make(targets: list[str]) -> None:
    if shutil.which("make") is None:
        return
    done = subprocess.run(
        ["make", "-n", *targets], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class _Parsed(BaseException):
    """The arguments were accepted."""


def _parse_only(run: Callable[[], object], words: list[str]) -> None:
    """Run a program until its own parser has accepted its arguments.

    ``--help`` would not do: argparse prints it before it looks at the other options.
    """
    parse = ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments, **named):
        parse(parser, *arguments, **named)
        raise _Parsed

    with _monkeypatch() as patch:
        patch.setattr(ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend((REPOSITORY / words[0]).parent)  # as python does
        try:
            run()
        except _Parsed:
            return
        except SystemExit as end:
            asked = end.code in (None, 0) and "--help" in words
            assert asked, f"{' '.join(words)} ended with {end.code}"
            return
    raise AssertionError(f"{' '.join(words)} does not look at its arguments")
