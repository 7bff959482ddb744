"""What image task pools share: own tasks, and test images checked before they are used."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fusion_bench.tasks.clip_classification import get_classnames

from ..common.compat import import_upstream
from ..common.options import plain, reject_unknown
from ..pools.clip_tasks import registered_tasks, require_class_names
from ..pools.image_processing import labelled_images
from ..pools.samples import Samples, opened

_upstream = import_upstream("fusion_bench.taskpool.image_classification")


class CheckedImages:
    """A mixin for FusionBench's image task pools."""

    _test_datasets: Mapping[str, Any]
    _checked: dict[str, Samples] | None = None

    @abstractmethod
    def classes(self, task: str) -> Sequence[str] | int:
        """The task's classes, by name or how many."""

    def check_samples(self) -> dict[str, Samples]:
        """Test sets of all tasks, as FusionBench reads them.

        Raises:
            ValueError: Images or labels are missing or do not fit the task's classes.
        """
        if self._checked is None:
            self._checked = {
                task: labelled_images(task, opened(listed), self.classes(task))
                for task, listed in self._test_datasets.items()
            }
        return self._checked


class OwnTasks(CheckedImages):
    """Task pools whose tasks FusionBench knows by class names, with tasks of the user's.

    Own tasks are registered while they are checked or evaluated, and no longer.
    """

    _prompts = True
    tasks: Any

    def _know(self, tasks: Mapping | None) -> None:
        self.tasks = plain(tasks)
        with self._registered():
            pass  # which finds what is wrong with them

    def _registered(self) -> AbstractContextManager[None]:
        return registered_tasks(self.tasks, self._prompts)

    def classes(self, task: str) -> Sequence[str]:
        require_class_names([task], "taskpool.tasks", self._prompts)
        return get_classnames(task)

    def check_samples(self) -> dict[str, Samples]:
        with self._registered():
            return super().check_samples()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self._registered():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]


class ImageTaskPool(OwnTasks, _upstream.ImageClassificationTaskPool):
    """FusionBench's ImageClassificationTaskPool with own tasks and checked test sets.

    Args:
        test_datasets: Task -> dataset or its config.
        tasks: Own task -> ``{classnames: [...]}``.
        **options: FusionBench's: `processor` and `dataloader_kwargs`.
    """

    _config_mapping = _upstream.ImageClassificationTaskPool._config_mapping | {
        "tasks": "tasks"
    }
    _prompts = False

    def __init__(
        self, test_datasets: Mapping, *, tasks: Mapping | None = None, **options: Any
    ):
        reject_unknown(
            type(self).__name__, options, list(self._config_mapping.values())
        )
        super().__init__(test_datasets, **options)
        self._know(tasks)

    def load_test_dataset(
        self, dataset_name: str, *args: Any, **kwargs: Any
    ) -> Samples:
        return self.check_samples()[dataset_name]
