"""Checkpoints a killed run continues from, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..common.logging import get_logger
from .engine import Callback, Engine, StepReport

log = get_logger(__name__)

_STATE, _META = "state.safetensors", "state.json"


def fingerprint(identity: Mapping) -> str:
    """A short name for everything that decides a run's result."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Checkpoints(Callback):
    """Saves the engine's learned state every few steps and restores it.

    Args:
        folder: Where runs keep their checkpoints; this run uses a subfolder named by the
            fingerprint of `identity`.
        identity: Everything that decides the result: options, tasks, data, experts.
        every: Steps between checkpoints.
        keep: How many of the newest to keep.
        resume: ``auto``: continue an interrupted run of the same identity; ``never``; or
            the path of a checkpoint.
        extra: Callbacks with state of their own, saved along: `state` and `load_state`
            for plain values, `tensors` and `load_tensors` for tensors, if they have any.

    Raises:
        ValueError: `resume` is a path that holds no checkpoint of the same identity.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping,
        every: int = 50,
        keep: int = 2,
        resume: str = "auto",
        extra: Mapping[str, object] | None = None,
    ):
        self.folder = Path(folder) / fingerprint(identity)
        self.identity = json.loads(json.dumps(identity, default=str))
        self.every, self.keep, self.resume = every, keep, resume
        self.extra = dict(extra or {})
        if resume not in ("auto", "never"):
            self._require_same_run(Path(resume))

    def _require_same_run(self, path: Path) -> None:
        if not (path / _META).is_file():
            raise ValueError(
                f"resume: {path} holds no checkpoint ({_META} is missing). Give the folder"
                " of one step, or 'auto', or 'never'."
            )
        saved = json.loads((path / _META).read_text())["identity"]
        changed = [
            f"{key}: {saved.get(key)!r} -> {self.identity.get(key)!r}"
            for key in sorted(saved.keys() | self.identity.keys())
            if saved.get(key) != self.identity.get(key)
        ]
        if changed:
            raise ValueError(
                f"resume: {path} belongs to a run with other settings ({'; '.join(changed)}"
                "). Use the same settings, or resume=never to start anew."
            )

    def restorer(self) -> Callback:
        """A callback that restores; put it before those whose state is restored."""
        return _Restorer(self)

    def restore_if_wanted(self, engine: Engine) -> None:
        """Continue from the checkpoint that `resume` asks for, if there is one."""
        path = self._newest() if self.resume == "auto" else Path(self.resume)
        if self.resume != "never" and path is not None:
            self.restore(engine, path)
            log.info("Continuing at step %d from %s", engine.step, path)
        if engine.fabric.is_global_zero:
            self._forget_after(engine.step)

    def _forget_after(self, step: int) -> None:
        """Drop what an earlier run left there; it would pass for this run's newest."""
        for folder in self.folder.glob("step_*"):
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)

    def on_step(self, engine: Engine, report: StepReport) -> None:
        ending = engine.stopped or engine.step >= engine.schedule.steps
        if engine.step % self.every == 0 and not ending:
            self.save(engine)

    def on_end(self, engine: Engine) -> None:
        """A finished run's results are saved elsewhere; its checkpoints go."""
        engine.fabric.barrier()
        if engine.fabric.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self) -> list[Path]:
        """Whole ones, oldest first; a kill may leave one half removed."""
        return sorted(
            folder
            for folder in self.folder.glob("step_*")
            if (folder / _STATE).is_file() and (folder / _META).is_file()
        )

    def _newest(self) -> Path | None:
        saved = self._saved()
        return saved[-1] if saved else None

    def save(self, engine: Engine) -> None:
        """Write one checkpoint; it appears whole or not at all."""
        if not engine.fabric.is_global_zero:
            return
        target = self.folder / f"step_{engine.step:08d}"
        partial = self.folder / f".partial_{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_tensors(engine, self.extra), partial / _STATE)
        extra = {name: owner.state() for name, owner in self.extra.items()}
        meta = {"step": engine.step, "identity": self.identity, "extra": extra}
        (partial / _META).write_text(json.dumps(meta))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in self._saved()[: -self.keep]:
            shutil.rmtree(old)
        for stale in self.folder.glob(".partial_*"):
            shutil.rmtree(stale)

    def restore(self, engine: Engine, path: Path) -> None:
        """Put the engine where the checkpoint was taken."""
        meta = json.loads((path / _META).read_text())
        tensors = load_file(path / _STATE)
        _load_tensors(engine, tensors)
        engine.step = meta["step"]
        for name, owner in self.extra.items():
            if name in meta["extra"]:
                owner.load_state(meta["extra"][name])
            if hasattr(owner, "load_tensors"):
                owner.load_tensors(_under(f"{name}.", tensors))


class _Restorer(Callback):
    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def on_start(self, engine: Engine) -> None:
        self._checkpoints.restore_if_wanted(engine)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _tensors(engine: Engine, extra: Mapping[str, object]) -> dict[str, Tensor]:
    tensors = {}
    for name, owner in extra.items():
        if hasattr(owner, "tensors"):
            tensors |= {
                f"{name}.{key}": value for key, value in owner.tensors().items()
            }
    for index, parameter in enumerate(engine.learned):
        tensors[f"parameter.{index}"] = parameter.detach()
        for name, value in engine.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return {name: value.cpu().contiguous() for name, value in tensors.items()}


def _load_tensors(engine: Engine, tensors: Mapping[str, Tensor]) -> None:
    for index, parameter in enumerate(engine.learned):
        with torch.no_grad():
            parameter.copy_(tensors[f"parameter.{index}"])
        for name, value in _under(f"optimizer.{index}.", tensors).items():
            # Adam keeps its step counter on the CPU, the rest beside the parameter.
            value = value if name == "step" else value.to(parameter.device)
            engine.optimizer.state[parameter][name] = value
