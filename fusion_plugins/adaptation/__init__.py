"""The test-time training engine that AdaMerging and Model Tinting share."""

from ..common.order import SampleOrder
from .checkpoints import Checkpoints
from .coefficients import Coefficients
from .data import Batch, BatchSource, EncodedDataset, TaskSamples
from .engine import Engine
from .guards import CollapseGuard, expert_predictions
from .identity import check_resume
from .interfaces import (
    AdaptationDiverged,
    Callback,
    Loss,
    Losses,
    StepReport,
    Training,
)
from .predictor import AdaptationTask, Predictor
from .progress import Progress
from .schedule import (
    JointSchedule,
    Schedule,
    SequentialSchedule,
    visited_draws,
)
from .sources import KeptSamples, StreamedSamples
from .teacher import TeacherLabels, label_samples, predictions
from .weights import QUANTISED, STORAGE_DTYPES, MergedWeights

__all__ = [
    "QUANTISED",
    "STORAGE_DTYPES",
    "AdaptationDiverged",
    "AdaptationTask",
    "Batch",
    "BatchSource",
    "Callback",
    "Checkpoints",
    "Coefficients",
    "CollapseGuard",
    "EncodedDataset",
    "Engine",
    "JointSchedule",
    "KeptSamples",
    "Loss",
    "Losses",
    "MergedWeights",
    "Predictor",
    "Progress",
    "SampleOrder",
    "Schedule",
    "SequentialSchedule",
    "StepReport",
    "StreamedSamples",
    "TaskSamples",
    "TeacherLabels",
    "Training",
    "check_resume",
    "expert_predictions",
    "label_samples",
    "predictions",
    "visited_draws",
]
