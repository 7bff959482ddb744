"""FusionBench's CLIP task pool for models with a task-specific layer, with calibration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError

from ..common.options import reject_unknown
from ..merged.model import TintedModel
from .images import OwnTasks

_BINS = 15  # of the calibration error, as in the field's tables


class CLIPTaskPool(OwnTasks, CLIPVisionModelTaskPool):
    """Evaluates plain models as upstream does, and tinted ones with their own layers.

    Adds `ece`, the expected calibration error with 15 bins, to every task's result and
    to the average. Test sets are checked before anything is evaluated.

    Args:
        test_datasets: Task -> dataset or its config.
        tasks: Own task -> ``{classnames: [...], templates: ["a photo of a {}."]}``.
        **options: See upstream's task pool.
    """

    _config_mapping = CLIPVisionModelTaskPool._config_mapping | {"tasks": "tasks"}

    def __init__(
        self, test_datasets: Mapping, *, tasks: Mapping | None = None, **options: Any
    ):
        reject_unknown(
            type(self).__name__, options, list(self._config_mapping.values())
        )
        super().__init__(test_datasets, **options)
        self._know(tasks)

    def setup(self) -> None:
        given, self._test_datasets = self._test_datasets, self.check_samples()
        try:
            super().setup()
        finally:
            self._test_datasets = given

    def evaluate(self, model: nn.Module, name: str | None = None, **kwargs) -> dict:
        """As upstream's, with ECE; a tinted model has no task set afterwards."""
        report = super().evaluate(model, name, **kwargs)
        errors = [r["ece"] for r in report.values() if "ece" in r]
        report["average"]["ece"] = sum(errors) / len(errors)
        if isinstance(model, TintedModel):
            report["model_info"]["tints"] = model.parameter_report()
        return report

    @torch.no_grad()
    def _evaluate(
        self,
        classifier: HFCLIPClassifier,
        test_loader: Iterable,
        num_classes: int,
        task_name: str | None = None,
    ) -> dict[str, float]:
        recorder = _Recorder(_TaskClassifier(classifier, task_name), num_classes)
        batches = recorder.noting_targets(test_loader)
        try:
            result = super()._evaluate(recorder, batches, num_classes, task_name)
        finally:
            recorder.classifier.restore()
        return result | {"ece": recorder.error.compute().item()}


class _TaskClassifier:
    """Upstream's classifier with a tinted model's layers for one task in place."""

    def __init__(self, classifier: HFCLIPClassifier, task: str | None):
        self._classifier, self._replaced = classifier, {}
        model = classifier.clip_model.vision_model
        self._model = model if isinstance(model, TintedModel) else None
        self._head = None
        if self._model is None:
            return
        if task in self._model.tasks or self._model.needs_task:
            self._model.set_task(task)  # says so if there is no tint for the task
            self._head = self._model.head(task)
            for name, layer in self._model.outer_layers(task).items():
                self._replaced[name] = getattr(classifier.clip_model, name)
                setattr(classifier.clip_model, name, layer)

    def __call__(self, images: Tensor, **kwargs) -> dict[str, Tensor]:
        if self._model is None:
            return self._classifier(images, **kwargs)
        features = self._classifier.get_image_features(images)
        features = features / features.norm(dim=-1, keepdim=True)
        if self._head is not None:
            return {"logits": self._head(features)}
        scale = self._classifier.clip_model.logit_scale.exp()
        return {"logits": features @ self._classifier.zeroshot_weights.t() * scale}

    def restore(self) -> None:
        for name, layer in self._replaced.items():
            setattr(self._classifier.clip_model, name, layer)
        if self._model is not None:
            self._model.set_task(None)

    def eval(self) -> None:
        self._classifier.eval()


class _Recorder:
    """Passes batches through and adds them to the calibration error."""

    def __init__(self, classifier: _TaskClassifier, classes: int):
        self.classifier = classifier
        self.error = MulticlassCalibrationError(classes, n_bins=_BINS, norm="l1")
        self._targets: Tensor | None = None

    def noting_targets(self, loader: Iterable) -> Iterator:
        for inputs, targets in loader:
            self._targets = targets
            yield inputs, targets

    def __call__(self, images: Tensor, **kwargs) -> dict[str, Tensor]:
        outputs = self.classifier(images, **kwargs)
        probabilities = outputs["logits"].float().softmax(-1).cpu()
        self.error.update(probabilities, self._targets.cpu())
        return outputs

    def eval(self) -> None:
        self.classifier.eval()
