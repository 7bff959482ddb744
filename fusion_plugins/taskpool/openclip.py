"""FusionBench's OpenCLIP task pool for tinted models, with calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..common.compat import import_upstream
from ..common.upstream import (
    is_set_up,
    loader_options_of,
    model_name_of,
    modelpool_of,
    task_heads_of,
)
from ..merged.model import TintedModel
from ..modelpool.openclip.architecture import named_architecture
from ..modelpool.openclip.checkpoints import load_head
from .images import CalibratedImages, tinted_model

if TYPE_CHECKING:
    from fusion_bench.models.open_clip import ClassificationHead, ImageClassifier

_upstream = import_upstream("fusion_bench.taskpool.openclip_vision.openclip_taskpool")
OpenCLIPVisionModelTaskPool: Any = _upstream.OpenCLIPVisionModelTaskPool


class OpenCLIPTaskPool(CalibratedImages, OpenCLIPVisionModelTaskPool):
    """Evaluates plain models as upstream does, and tinted ones with their own layers.

    Adds `ece`, the expected calibration error with 15 bins, to every task's result and to
    the average.

    Args:
        test_datasets: Task -> dataset or config.
        classification_heads: Task -> path (as the model pool's), module or config.
        dataloader_kwargs: For torch's DataLoader.
        model_name: Tells the preprocessing where no model pool does; a model of open_clip
            or a folder with its config. Nothing is downloaded.
        trust_pickle: Read heads that are pickles of whole modules.
        **kwargs: See upstream's task pool.

    Raises:
        ValueError: `trust_pickle` is not true or false.
    """

    def __init__(
        self,
        test_datasets: Mapping,
        classification_heads: Mapping,
        dataloader_kwargs: Mapping,
        model_name: str | None = None,
        trust_pickle: bool = False,
        **kwargs: Any,
    ):
        if not isinstance(trust_pickle, bool):
            raise ValueError(
                f"trust_pickle is {trust_pickle!r}, expected true or false."
            )
        super().__init__(
            test_datasets, classification_heads, dataloader_kwargs, model_name, **kwargs
        )
        self.trust_pickle = trust_pickle

    def setup(self) -> None:
        """As upstream's, with heads from any file and no download.

        Raises:
            ValueError: Neither a model pool nor `model_name` tells the preprocessing, or
                a head cannot be read.
        """
        self.processor = self._find_processor()
        self.test_datasets, self.test_dataloaders = {}, {}
        for name, checked in self.check_samples().items():
            prepared = ImageClassificationDataset(checked, self.processor)
            self.test_datasets[name] = prepared
            self.test_dataloaders[name] = self.fabric.setup_dataloaders(
                DataLoader(prepared, **loader_options_of(self))
            )
        self._keep_images()
        is_set_up.put(self, True)

    @cached_property
    def classifier_heads(self) -> dict[str, ClassificationHead]:
        return {
            name: self._head(head).to(self.fabric.device)
            for name, head in task_heads_of(self).items()
        }

    def classes(self, task: str) -> int:
        return self.classifier_heads[task].weight.size(0)

    def _head(self, head: Any) -> ClassificationHead:
        if isinstance(head, str):
            return load_head(head, self.trust_pickle)
        return _upstream.load_classifier_head(head)

    def _find_processor(self) -> Callable:
        modelpool = modelpool_of(self)
        if hasattr(type(modelpool), "test_processor"):
            return modelpool.test_processor
        if model_name_of(self) is None:
            raise ValueError(
                "How to prepare images is not known: run the task pool together with an"
                " OpenCLIP model pool, or set taskpool.model_name, for example ViT-B-32."
            )
        return named_architecture(model_name_of(self)).transforms()[1]

    def evaluate(self, model: nn.Module, **kwargs: Any) -> dict[str, Any]:
        """As upstream's, with ECE; a tinted model has no task set afterwards."""
        self._tinted = tinted_model(model)
        with _transforms_of_trunk(self._tinted):
            return super().evaluate(model, **kwargs)

    @contextmanager
    def _outputs(self, classifier: ImageClassifier, task: str) -> Iterator[Callable]:
        tinted = self._tinted
        if tinted is None or not (task in tinted.tasks or tinted.needs_task):
            yield classifier
            return
        head = tinted.head(task)

        def outputs(images: Tensor) -> Tensor:
            features = classifier.image_encoder(images)
            if classifier.classification_head.normalize:
                features = features / features.norm(dim=-1, keepdim=True)
            return head(features)

        with tinted.for_task(task):  # says so if there is no tint for the task
            yield classifier if head is None else outputs


@contextmanager
def _transforms_of_trunk(model: TintedModel | None) -> Iterator[None]:
    """Upstream's classifier asks its encoder for transforms, without using them."""
    names = ("train_preprocess", "val_preprocess")
    added = [] if model is None else [n for n in names if not hasattr(model, n)]
    for name in added:
        setattr(model, name, getattr(model.trunk, name, None))  # type: ignore[union-attr]
    try:
        yield
    finally:
        for name in added:
            delattr(model, name)
