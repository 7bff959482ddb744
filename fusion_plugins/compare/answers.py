"""Which test samples a model got right, a bit for each."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answers:
    """A model's answers on one task's test samples.

    Attributes:
        right: Whether each is correct, shape (samples,), bool.
        order: Fingerprint of the true classes in the order of evaluation.
    """

    right: np.ndarray
    order: str

    def stored(self) -> dict[str, Any]:
        """As a cell's file holds them: a bit for each sample, in base64."""
        bits = base64.b64encode(np.packbits(self.right).tobytes()).decode("ascii")
        return {"samples": len(self.right), "order": self.order, "right": bits}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Answers:
        """What `stored` gave."""
        packed = np.frombuffer(base64.b64decode(stored["right"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=stored["samples"])
        return cls(bits.astype(bool), stored["order"])
