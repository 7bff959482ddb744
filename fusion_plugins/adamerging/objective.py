"""What AdaMerging learns: coefficients alone, from one of three objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..adaptation import (
    Batch,
    Coefficients,
    JointSchedule,
    Loss,
    Losses,
    MergedWeights,
    Predictor,
    SampleOrder,
    Schedule,
    TeacherLabels,
    label_samples,
)
from ..learned.functional import pseudo_label_loss
from ..learned.objective import Learner, Start
from ..pools.adapter import PoolAdapter
from .functional import marginal_negentropy, prediction_entropy


@dataclass(frozen=True)
class AdaMergingObjective:
    """The merged model's predictions on unlabelled samples.

    Attributes:
        protocol: Clamp, steps, batches per task, and epsilon of the entropy.
        kind: ``entropy``, ``information_maximisation`` or ``expert_labels``.
        marginal_weight: Of the entropy of the mean prediction.
    """

    protocol: dict[str, Any]
    kind: str = "entropy"
    marginal_weight: float = 1.0
    label: str = field(default="AdaMerging", init=False)

    @property
    def clamps(self) -> bool:
        return self.protocol["clamp"]

    def check(self, adapter: PoolAdapter, module: nn.Module) -> None:
        """Predictions must be of classes, and labels one per sample."""
        values = [task for task in adapter.tasks if not adapter.has_classes(task)]
        if values:
            raise ValueError(
                f"AdaMerging minimises the entropy of predicted classes, but {values}"
                " predict numbers. Leave these experts out of the pool, or use"
                " method=tinting method.labels=outputs."
            )
        if adapter.dense and self.kind == "expert_labels":
            raise ValueError(
                "objective=expert_labels needs one class per sample, but the tasks predict"
                " one at every place of an image. Use objective=entropy init=0.3."
            )

    def schedule(self, tasks: int, order: SampleOrder) -> Schedule:
        protocol = self.protocol
        return JointSchedule(tasks, protocol["steps"], protocol["batches_per_task"])

    def prepare(self, experts: Predictor, adapter: PoolAdapter) -> Start:
        """Label the samples with the experts, where their labels are the objective."""
        loss: Loss = self.loss
        if self.kind == "expert_labels":
            loss = _ExpertLabels(label_samples(experts, soft=False))

        def start(weights: MergedWeights, coefficients: Coefficients) -> Learner:
            groups = [{"params": list(coefficients.parameters())}]
            return Learner(experts.tasks, loss, groups, lambda: weights.module)

        return start

    def loss(self, task: str, logits: Tensor, batch: Batch) -> Losses:
        """Entropy of each sample, and that of the mean prediction if it counts."""
        places = logits.flatten(0, -2)  # of a dense task, several per sample
        entropy = prediction_entropy(places, self.protocol["entropy_eps"])
        entropy = entropy.view(len(logits), -1).mean(dim=1)
        if self.kind == "entropy":
            return Losses(entropy)
        probabilities = logits.softmax(-1).view(len(logits), -1, logits.shape[-1])
        return Losses(
            entropy,
            averaged=probabilities.mean(dim=1),
            of_mean=lambda mean: self.marginal_weight * marginal_negentropy(mean),
        )


@dataclass(frozen=True)
class _ExpertLabels:
    """Cross-entropy to the experts' hard labels."""

    teachers: dict[str, TeacherLabels]

    def __call__(self, task: str, logits: Tensor, batch: Batch) -> Losses:
        labels = self.teachers[task].labels[batch.samples.to(logits.device)]
        return Losses(pseudo_label_loss(logits, labels))
