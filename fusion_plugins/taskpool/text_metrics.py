"""What is measured of a text classifier: GLUE's own metric per task, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

_BINS = 15  # of the calibration error, as in the field's tables


def _f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Of class 1 where there are two, else the mean over classes."""
    classes = logits.shape[1]
    if classes == 2:
        return binary_f1_score(logits.argmax(1), labels)
    return multiclass_f1_score(logits, labels, classes, average="macro")


# Name -> (outputs, labels) -> score; those of regressions take outputs of shape (n,).
CLASS_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matthews_correlation": lambda x, y: multiclass_matthews_corrcoef(x, y, x.shape[1]),
    "f1": _f1,
}
REGRESSION_METRICS = {"pearson": pearson_corrcoef, "spearman": spearman_corrcoef}
METRICS = (*CLASS_METRICS, *REGRESSION_METRICS)

# What GLUE reports beside accuracy, by the end of the task's name.
GLUE_METRICS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("f1",),
    "qqp": ("f1",),
    "stsb": REGRESSION_METRICS,
}


def metrics_for(task: str) -> tuple[str, ...]:
    """GLUE's metrics beside accuracy: those of ``cola`` also for ``glue-cola``."""
    name = task.lower().replace("-b", "b").replace("/", "-").replace("_", "-")
    return tuple(GLUE_METRICS.get(name.rpartition("-")[2], ()))


def measure(
    task: str, logits: Tensor, labels: Tensor, extra: Sequence[str] | None = None
) -> dict[str, float]:
    """Scores of one task.

    Args:
        task: Its name, for messages.
        logits: Shape (samples, outputs); one output is a regression.
        labels: Shape (samples,), classes from 0, or numbers.
        extra: Names from METRICS beside accuracy; None for GLUE's own by the task's name.

    Returns:
        ``accuracy``, ``loss`` (cross-entropy) and ``ece`` (15 bins), or for a regression
        ``loss`` (mean squared error), then `extra`; a regression has both correlations
        in any case.

    Raises:
        ValueError: A label is no class of the head, or a metric does not fit.
    """
    logits = logits.float()
    regression = logits.shape[1] == 1
    known = REGRESSION_METRICS if regression else CLASS_METRICS
    if extra is None:
        extra = [name for name in metrics_for(task) if name in known]
    unfit = [name for name in extra if name not in known]
    if unfit:
        raise ValueError(
            f"Task '{task}': metrics {unfit} do not fit a head with {logits.shape[1]}"
            f" output(s); {list(known)} do."
        )
    if regression:
        values = logits[:, 0]
        scores = {"loss": mse_loss(values, labels.float())}
        extra, labels = tuple(dict.fromkeys([*extra, *known])), labels.float()
    else:
        values = logits
        labels = class_numbers(task, labels, logits.shape[1])
        scores = _class_scores(logits, labels)
    scores |= {name: known[name](values, labels) for name in extra}
    return {name: float(value) for name, value in scores.items()}


def class_numbers(task: str, labels: Tensor, classes: int) -> Tensor:
    """Labels as whole numbers, or ValueError."""
    wrong = labels[(labels < 0) | (labels >= classes) | (labels != labels.floor())]
    if len(wrong):
        hint = " (hidden test labels? use the validation split)" if wrong[0] < 0 else ""
        raise ValueError(
            f"Task '{task}' has the label {wrong[0]:g}{hint}, but its head knows the"
            f" classes 0 to {classes - 1}."
        )
    return labels.long()


def _class_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    classes = logits.shape[1]
    ece = multiclass_calibration_error(
        logits.softmax(1), labels, classes, n_bins=_BINS, norm="l1"
    )
    return {
        # The module, which a comparison sees at work, not the function.
        "accuracy": MulticlassAccuracy(classes, average="micro")(logits, labels),
        "loss": cross_entropy(logits, labels),
        "ece": ece,
    }


def averages(report: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over the tasks of each number that some task has, regressions' loss apart."""
    result = {}
    for name in ("accuracy", "loss", "ece"):
        values = [r[name] for r in report.values() if name in r and "accuracy" in r]
        if values:
            result[name] = sum(values) / len(values)
    result["score"] = sum(main_score(r) for r in report.values()) / len(report)
    return result


def main_score(scores: dict[str, float]) -> float:
    """What GLUE counts: the mean of all metrics of a task, Matthews' alone for CoLA."""
    if "matthews_correlation" in scores:
        return scores["matthews_correlation"]
    counted = ("accuracy", "f1", *REGRESSION_METRICS)
    return torch.tensor([scores[n] for n in counted if n in scores]).mean().item()
