"""Checkpoints a killed run continues from, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..common import get_logger
from ..common.options import settings_hash
from .identity import FORMAT, META, check_resume, read_meta
from .interfaces import Callback, StepReport, Training

log = get_logger(__name__)

_STATE = "state.safetensors"


class Checkpoints(Callback):
    """Saves the engine's learned state every few steps and restores it.

    A context manager: no other run of the same identity uses the folder meanwhile. The
    checkpoints stay until :meth:`forget`, to be called once the results are saved.

    Args:
        folder: Where runs keep their checkpoints; this run uses a subfolder named by the
            hash of `identity`.
        identity: Everything that decides the result: options, tasks, data, experts.
        every: Steps between checkpoints.
        keep: How many of the newest to keep.
        resume: ``auto``: continue an interrupted run of the same identity; ``never``; or
            the path of a checkpoint.
        extra: Callbacks with state of their own, saved along: `state` and `load_state`
            for plain values, `tensors` and `load_tensors` for tensors, if they have any.
        writes: Whether this process saves; the others only restore.

    Raises:
        ValueError: `resume` is a path that holds no checkpoint of the same identity, or
            another run has the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping,
        every: int = 50,
        keep: int = 2,
        resume: str = "auto",
        extra: Mapping[str, Any] | None = None,
        writes: bool = True,
    ):
        check_resume(resume, identity)
        if resume not in ("auto", "never"):
            _read(Path(resume))
        self.folder = Path(folder) / settings_hash(identity, 12)
        self.identity = json.loads(json.dumps(identity, default=str))
        self.every, self.keep, self.resume = every, keep, resume
        self.extra, self.writes = dict(extra or {}), writes
        self._lock = FileLock(self.folder / "lock")

    def __enter__(self) -> Checkpoints:
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise ValueError(
                    f"checkpoint_dir: another run with the same settings is using"
                    f" {self.folder}. Wait for its end, or give another checkpoint_dir."
                ) from None
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def forget(self) -> None:
        """Remove the checkpoints: the results are saved elsewhere."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def restorer(self) -> Callback:
        """A callback that restores; put it before those whose state is restored."""
        return _Restorer(self)

    def restore_if_wanted(self, engine: Training) -> None:
        """Continue from the checkpoint that `resume` asks for, if there is one."""
        if self.resume == "auto":
            self._restore_newest(engine)
        elif self.resume != "never":
            self.restore(engine, Path(self.resume))
        if self.writes:
            self._forget_after(engine.step)

    def _restore_newest(self, engine: Training) -> None:
        for path in reversed(self._saved()):
            try:
                self.restore(engine, path)
                return
            except ValueError as error:
                log.warning("%s The one before it is tried.", error)

    def _forget_after(self, step: int) -> None:
        """Drop what an earlier run left there; it would pass for this run's newest."""
        for folder in self._steps():
            if int(folder.name.removeprefix("step_")) > step:
                shutil.rmtree(folder)

    def on_step(self, engine: Training, report: StepReport) -> None:
        if engine.step % self.every == 0 and not engine.stopped:
            self.save(engine)

    def on_end(self, engine: Training) -> None:
        """The state at the end, until the results are saved elsewhere."""
        engine.predictor.fabric.barrier()
        if not engine.stopped and engine.step % self.every:
            self.save(engine)

    def _steps(self) -> list[Path]:
        """Oldest first; what others have put beside them, such as copies, is left alone."""
        found = (f for f in self.folder.glob("step_*") if f.is_dir())
        return sorted(f for f in found if re.fullmatch(r"step_\d+", f.name))

    def _saved(self) -> list[Path]:
        """Whole ones; a kill may leave one half removed."""
        return [
            folder
            for folder in self._steps()
            if (folder / _STATE).is_file() and (folder / META).is_file()
        ]

    def save(self, engine: Training) -> None:
        """Write one checkpoint; it appears whole or not at all."""
        if not self.writes:
            return
        target = self.folder / f"step_{engine.step:08d}"
        partial = self.folder / f".partial_{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = save(_tensors(engine, self.extra))
        (partial / _STATE).write_bytes(state)
        extra = {name: owner.state() for name, owner in self.extra.items()}
        meta = {"step": engine.step, "identity": self.identity, "extra": extra}
        meta["format"] = FORMAT
        meta["sha256"] = _digest(state, meta)
        (partial / META).write_text(json.dumps(meta))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        kept = self._saved()[-self.keep :]
        # Also what kills have left: one half removed, or half written.
        for old in [*self._steps(), *self.folder.glob(".partial_*")]:
            if old not in kept:
                shutil.rmtree(old)

    def restore(self, engine: Training, path: Path) -> None:
        """Put the engine where the checkpoint was taken.

        Raises:
            ValueError: The checkpoint is damaged.
        """
        meta, tensors = _read(path)
        _load_tensors(engine, tensors)
        engine.step = meta["step"]
        for name, owner in self.extra.items():
            if name in meta["extra"]:
                owner.load_state(meta["extra"][name])
            if hasattr(owner, "load_tensors"):
                owner.load_tensors(_under(f"{name}.", tensors))
        log.info("Continuing at step %d from %s", engine.step, path)


class _Restorer(Callback):
    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def on_start(self, engine: Training) -> None:
        self._checkpoints.restore_if_wanted(engine)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says of itself, and its tensors, or ValueError."""
    meta = read_meta(path)
    try:
        state = (path / _STATE).read_bytes()
        # Version 0.1.0 saved no digest.
        if "sha256" in meta and meta.pop("sha256") != _digest(state, meta):
            raise ValueError("it is not what was saved")
        return meta, load(state)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"The checkpoint {path} is damaged ({error}). Give another one, or"
            " resume=never to start anew."
        ) from error


def _digest(state: bytes, meta: Mapping) -> str:
    digest = hashlib.sha256(state)
    digest.update(json.dumps(meta, sort_keys=True).encode())
    return digest.hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _tensors(engine: Training, extra: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
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


def _load_tensors(engine: Training, tensors: Mapping[str, Tensor]) -> None:
    for index, parameter in enumerate(engine.learned):
        with torch.no_grad():
            parameter.copy_(tensors[f"parameter.{index}"])
        for name, value in _under(f"optimizer.{index}.", tensors).items():
            # Adam keeps its step counter on the CPU, the rest beside the parameter.
            value = value if name == "step" else value.to(parameter.device)
            engine.optimizer.state[parameter][name] = value
