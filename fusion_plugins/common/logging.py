"""The package's logger: one line a run, whatever the number of processes."""

import logging

from lightning_utilities.core.rank_zero import rank_zero_only


class _RankZeroFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(rank_zero_only, "rank", 0) in (None, 0)


def get_logger(name: str) -> logging.Logger:
    """A standard logger that is silent on every process but the first."""
    logger = logging.getLogger(name)
    if not any(isinstance(f, _RankZeroFilter) for f in logger.filters):
        logger.addFilter(_RankZeroFilter())
    return logger
