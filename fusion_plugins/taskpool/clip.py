"""FusionBench's CLIP task pool for models with a task-specific layer, with calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.models.modulator import ModulatedModel
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from torch import Tensor

from ..common.upstream import saved_options, test_datasets_of
from ..merged.model import TintedModel
from ..merged.sites import replaced
from ..modelpool.folders import accounted
from ..pools.clip_tasks import TextHeads
from .images import OwnTasks


class CLIPTaskPool(OwnTasks, CLIPVisionModelTaskPool):
    """Evaluates plain models as upstream does, and tinted ones with their own layers.

    A tinted model has no task set afterwards.

    Args:
        test_datasets: Task -> dataset or its config.
        tasks: Own task -> ``{classnames: [...], templates: ["a photo of a {}."]}``.
        **options: See upstream's task pool.
    """

    _config_mapping = saved_options(CLIPVisionModelTaskPool) | {"tasks": "tasks"}

    def setup(self) -> None:
        given = test_datasets_of(self)
        test_datasets_of.put(self, self.check_samples())
        try:
            with accounted("The task pool's CLIP"):
                super().setup()
        finally:
            test_datasets_of.put(self, given)

    def on_task_evaluation_begin(
        self, classifier: HFCLIPClassifier, task_name: str
    ) -> None:
        """As upstream's; the text tower reads class names once for all evaluations."""
        super().on_task_evaluation_begin(classifier, task_name)

        def remembered(names: Sequence[str], templates: Sequence[Callable]) -> None:
            classifier.zeroshot_weights = self._text_heads(names, templates)

        classifier.set_classification_task = remembered

    @cached_property
    def _text_heads(self) -> TextHeads:
        return TextHeads(HFCLIPClassifier(self.clip_model, self.processor))

    @contextmanager
    def _outputs(self, classifier: HFCLIPClassifier, task: str) -> Iterator[Callable]:
        clip, model = classifier.clip_model, classifier.clip_model.vision_model
        if isinstance(model, ModulatedModel):  # of EMR merging
            model.set_task(task)
        if not isinstance(model, TintedModel):
            yield classifier
            return
        head, outer = None, {}
        if task in model.tasks or model.needs_task:
            model.set_task(task)  # says so if there is no tint for the task
            head, outer = model.head(task), model.outer_layers(task)

        def outputs(images: Tensor, **kwargs: Any) -> dict[str, Tensor]:
            features = classifier.get_image_features(images)
            features = features / features.norm(dim=-1, keepdim=True)
            if head is not None:
                return {"logits": head(features)}
            scale = clip.logit_scale.exp()
            return {"logits": features @ classifier.zeroshot_weights.t() * scale}

        try:
            with replaced(clip, outer):
                yield outputs
        finally:
            model.set_task(None)
