"""The options of `method=select`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..awd.base_method import base_config
from ..awd.options import base_method
from ..common.options import Options, choice, flag, integer, like, mapping
from ..learned.options import LearnedOptions
from ..pools.tasks import DataOptions
from ..selection.candidates import Grid
from ..selection.pool import MEASURES, SAMPLES, SelectionData


@dataclass(frozen=True, kw_only=True)
class SelectOptions(Options):
    """Options of :class:`~fusion_plugins.select.algorithm.SelectAlgorithm`.

    Args:
        base: The method whose options are chosen: a FusionBench method config, an
            algorithm object, or None for Task Arithmetic.
        over: Option of `base` -> values to try; all combinations are. An option of a
            part is named ``part.option``, or by its last word where that says which.
            None: ``scaling_factor`` at 0.1 to 1.0, then finer around the best.
        score: ``agreement`` with the experts' predictions; ``val``: accuracy on the
            labels of the pool's val split; ``entropy``: of the predictions, negative;
            ``oracle``: accuracy on the test labels, an upper bound and no method.
        data: Split the samples are from: ``test``, ``val`` or ``train``. Labels in them
            are not read; with ``score=val`` the split is val, with ``oracle`` test.
        fraction, max_samples: How much of each dataset takes part.
        drop_early: Drop a candidate after a quarter of the samples if it is more than
            three standard errors behind the best so far.
        tasks: What FusionBench does not know of own tasks; see the pool's adapter.
        seed: Of the samples' choice, and set before every merge; None means 0.
        cache: Where preprocessed samples are kept: ``cpu``, ``device`` or ``none``.
        num_workers: Preprocessing processes; None for a sensible number.

    Raises:
        ValueError: `over` names an option that `base` does not have, or lists no values.
    """

    base: Any = base_method()
    over: dict[str, Any] | None = mapping("{scaling_factor: [0.1, 0.2, 0.3]}")
    score: str = choice("agreement", MEASURES)
    data: str = like(LearnedOptions, "data", "test")
    fraction: float = like(LearnedOptions, "fraction", 1.0)
    max_samples: int | None = integer(SAMPLES, low=1, optional=True)
    drop_early: bool = flag(True)
    tasks: dict[str, Any] | None = like(LearnedOptions, "tasks", None)
    seed: int = like(LearnedOptions, "seed", None)
    cache: str = like(LearnedOptions, "cache", "cpu")
    num_workers: int | None = like(LearnedOptions, "num_workers", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.grid  # which finds what is wrong with it

    @property
    def grid(self) -> Grid:
        """The candidates."""
        config = base_config(self.base)
        if self.over is None:
            return Grid.scan(config, "over=null")
        return Grid.read(config, self.over)

    @property
    def selection_data(self) -> SelectionData:
        """What they are scored on."""
        samples = self.fraction, self.max_samples, self.cache, self.num_workers
        return SelectionData(self.score, DataOptions(self.data, *samples), self.seed)
