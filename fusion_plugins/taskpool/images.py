"""What image task pools share: own tasks, checked test sets, calibration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from fusion_bench.tasks.clip_classification import get_classnames
from lightning.fabric import is_wrapped
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError

from ..common.compat import import_upstream
from ..common.options import plain, reject_unknown
from ..common.upstream import (
    is_set_up,
    modelpool_of,
    models_of,
    saved_options,
    test_datasets_of,
)
from ..merged.model import TintedModel
from ..pools.clip_tasks import registered_tasks, require_class_names
from ..pools.image_processing import ImageCodec, LabelledImages, labelled_images
from ..pools.kept_images import chosen_folder
from ..pools.own_heads import check_head_order, check_head_size, head_config
from ..pools.samples import opened
from .kept import KeptTestSet

_Upstream: Any = import_upstream(
    "fusion_bench.taskpool.image_classification"
).ImageClassificationTaskPool
_BINS = 15  # of the calibration error, as in the field's tables


class CalibratedImages:
    """A mixin for FusionBench's image task pools.

    Test sets are checked before anything is evaluated. Every task's result and the
    average get `ece`, the expected calibration error with 15 bins. Images that a method
    has resized are taken from it, and from the second evaluation on they are kept anyway.
    """

    test_datasets: dict[str, Any]  # task -> FusionBench's, of samples and a processor

    def setup(self) -> None:
        """As upstream's, with images from a codec where that is exact."""
        super().setup()  # type: ignore[misc]
        self._keep_images()

    @abstractmethod
    def classes(self, task: str) -> Sequence[str] | int:
        """A task's classes, by name or how many."""

    def check_samples(self) -> dict[str, LabelledImages]:
        """The test sets as FusionBench reads them, or ValueError where they do not fit."""
        chosen_folder()
        test_datasets = test_datasets_of(self)
        # Before any data set is opened, which may download it.
        classes = {t: self.classes(t) for t in test_datasets if t not in self._checked}
        for task, known in classes.items():
            raw = opened(test_datasets[task])
            self._checked[task] = labelled_images(task, raw, known)
        return {task: self._checked[task] for task in test_datasets}

    @cached_property
    def _checked(self) -> dict[str, LabelledImages]:
        return {}

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As upstream's, with ECE."""
        again = is_set_up(self, False)
        if not again:
            self.setup()
        for prepared in self.test_datasets.values():
            if isinstance(prepared.dataset, KeptTestSet):
                prepared.dataset.keep(make=again)
        report = super().evaluate(model, *args, **kwargs)  # type: ignore[misc]
        errors = [scores["ece"] for scores in report.values() if "ece" in scores]
        report["average"]["ece"] = sum(errors) / len(errors)
        tinted = tinted_model(model)
        if tinted is not None:
            report["model_info"]["tints"] = tinted.parameter_report()
        return report

    def _keep_images(self) -> None:
        codecs: dict[int, ImageCodec] = {}
        for prepared in self.test_datasets.values():
            processor = prepared.processor
            processor = getattr(processor, "image_processor", processor)
            if isinstance(prepared.dataset, LabelledImages) and processor is not None:
                if id(processor) not in codecs:
                    codecs[id(processor)] = ImageCodec(processor)
                if (codec := codecs[id(processor)]).compact:
                    kept = KeptTestSet(prepared.dataset, codec)
                    prepared.dataset, prepared.processor = kept, None

    @torch.no_grad()
    def _evaluate(
        self, classifier: Any, test_loader: Any, num_classes: int, task_name: str
    ) -> dict[str, float]:
        with self._outputs(classifier, task_name) as outputs:
            recorder = Recorder(classifier, outputs, num_classes)
            scores = super()._evaluate(  # type: ignore[misc]
                recorder, recorder.noting_targets(test_loader), num_classes, task_name
            )
        return scores | {"ece": recorder.error.compute().item()}

    @contextmanager
    def _outputs(self, classifier: Any, task: str) -> Iterator[Callable]:
        """What the task's layers make of images, as upstream's `_evaluate` expects it."""
        yield classifier


def tinted_model(model: nn.Module) -> TintedModel | None:
    """The tinted model that is evaluated, also one that a fabric has set up."""
    inner = model.module if is_wrapped(model) else model
    return inner if isinstance(inner, TintedModel) else None


class Recorder:
    """Stands for a classifier, and adds what it says to the calibration error."""

    def __init__(self, classifier: nn.Module, outputs: Callable, classes: int):
        self.eval, self._outputs = classifier.eval, outputs
        self.error = MulticlassCalibrationError(classes, n_bins=_BINS, norm="l1")

    def noting_targets(self, loader: Iterable) -> Iterator:
        for inputs, self._targets in loader:
            yield inputs, self._targets

    def __call__(self, images: Tensor, **kwargs: Any) -> Any:
        outputs = self._outputs(images, **kwargs)
        logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
        self.error.update(logits.float().softmax(-1).cpu(), self._targets.cpu())
        return outputs


class OwnTasks(CalibratedImages):
    """Task pools that know tasks by class names, with tasks of the user's.

    Those are registered while they are checked or evaluated, and no longer. Unknown
    options are refused; `base_model` stands in FusionBench's configs for others to name.
    """

    _prompts = True

    def __init__(
        self, test_datasets: Mapping, *, tasks: Mapping | None = None, **options: Any
    ):
        known = [*saved_options(self).values(), "base_model"]
        reject_unknown(type(self).__name__, options, known)
        super().__init__(test_datasets, **options)  # type: ignore[call-arg]
        self.tasks = plain(tasks)
        with self._registered():
            pass  # which finds what is wrong with them

    def _registered(self) -> AbstractContextManager[None]:
        return registered_tasks(self.tasks, self._prompts)

    def classes(self, task: str) -> Sequence[str]:
        require_class_names(test_datasets_of(self), "taskpool.tasks", self._prompts)
        return get_classnames(task)

    def check_samples(self) -> dict[str, LabelledImages]:
        with self._registered():
            return super().check_samples()

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self._registered():
            return super().evaluate(model, *args, **kwargs)


class ImageTaskPool(OwnTasks, _Upstream):
    """FusionBench's ImageClassificationTaskPool with ECE and checked test sets.

    Args:
        test_datasets: Task -> dataset or its config.
        tasks: Own task -> ``{classnames: [...]}``.
        **options: FusionBench's: `processor` and `dataloader_kwargs`.
    """

    _config_mapping = saved_options(_Upstream) | {"tasks": "tasks"}
    _prompts = False

    def setup(self) -> None:
        super().setup()
        is_set_up.put(self, True)  # upstream's forgets, and does it again every time

    def classes(self, task: str) -> Sequence[str]:
        names = super().classes(task)
        check_head_size(task, self._experts.get(task), [len(names)], "its class names")
        return names

    def check_samples(self) -> dict[str, LabelledImages]:
        checked = super().check_samples()
        for task, samples in checked.items():
            config = head_config(self._experts.get(task))
            if config is not None:
                check_head_order(task, samples.raw, config)
        return checked

    @property
    def _experts(self) -> Mapping[str, Any]:
        return models_of(modelpool_of(self), {})

    def load_test_dataset(
        self, dataset_name: str, *args: Any, **kwargs: Any
    ) -> LabelledImages:
        return self.check_samples()[dataset_name]
