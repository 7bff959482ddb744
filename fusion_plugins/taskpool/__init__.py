"""FusionBench's task pools, taught about task-specific layers and calibration."""

from .clip import CLIPTaskPool

__all__ = ["CLIPTaskPool"]
