"""The test-time training engine that AdaMerging and Model Tinting share."""

from ..common.order import SampleOrder
from .checkpoints import Checkpoints, fingerprint
from .coefficients import Coefficients
from .data import Batch, BatchSource, EncodedDataset, TaskData
from .engine import Engine
from .guards import CollapseGuard
from .interfaces import (
    AdaptationDiverged,
    AdaptationTask,
    Callback,
    SampleLoss,
    StepReport,
)
from .progress import Progress
from .schedule import JointSchedule, SequentialSchedule
from .weights import STORAGE_DTYPES, MergedWeights

__all__ = [
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
    "MergedWeights",
    "Progress",
    "SampleLoss",
    "SampleOrder",
    "SequentialSchedule",
    "StepReport",
    "TaskData",
    "fingerprint",
]
