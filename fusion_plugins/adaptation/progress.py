"""A progress bar, the loggers, and the history of a run."""

from __future__ import annotations

import time

from tqdm.auto import tqdm

from .interfaces import Callback, StepReport, Training


class Progress(Callback):
    """Progress bar on the first process; metrics to Fabric's loggers; a history.

    Args:
        label: What the bar says.
        log_every: Steps between entries of the loggers and the history.
    """

    def __init__(self, label: str, log_every: int = 1):
        self.label, self.log_every = label, log_every
        self.history: list[dict] = []

    def on_start(self, engine: Training) -> None:
        self._bar = tqdm(
            total=engine.schedule.steps,
            initial=engine.step,
            desc=self.label,
            disable=not engine.predictor.fabric.is_global_zero,
            dynamic_ncols=True,
        )
        self._last = time.perf_counter()

    def on_step(self, engine: Training, report: StepReport) -> None:
        loss = sum(report.loss.values())
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if engine.step % self.log_every:
            return
        now = time.perf_counter()
        rate = report.samples * self.log_every / max(now - self._last, 1e-9)
        self._last = now
        entry = {"step": report.step, "loss": loss, "samples_per_second": rate}
        applied = engine.coefficients.applied().detach()
        for name, value in (
            ("min", applied.min()),
            ("mean", applied.mean()),
            ("max", applied.max()),
        ):
            entry[f"coefficient_{name}"] = value.item()
        for task in report.loss:
            entry[f"loss/{task}"] = report.loss[task]
            entry[f"entropy/{task}"] = report.entropy[task]
        for part, seconds in engine.seconds.items():
            entry[f"seconds/{part}"] = seconds
        self.history.append(entry)
        metrics = {f"adaptation/{k}": v for k, v in entry.items() if k != "step"}
        engine.predictor.fabric.log_dict(metrics, step=report.step)

    def on_end(self, engine: Training) -> None:
        self._bar.close()

    def state(self) -> list[dict]:
        return self.history

    def load_state(self, history: list[dict]) -> None:
        self.history = list(history)
