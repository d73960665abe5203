"""What happens to a sample that cannot be read: counted, logged by key, replaced by padding; too many stop the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from m4oe_ds.errors import DataError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read.

    Attributes:
        where: shard and index of the sample.
        reason: why, for people.
    """

    where: str
    reason: str


@dataclass
class Quarantine:
    """Unreadable samples of one stream.

    Attributes:
        total: samples of the split.
        max_fraction: largest share that may be bad; at least one sample always may.
        reasons: reason of every bad sample, by shard and index.
    """

    total: int
    max_fraction: float
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, reason: str) -> None:
        """Counts a bad sample once.

        Raises:
            DataError: more than the allowed share is bad.
        """
        if where in self.reasons:
            return
        self.reasons[where] = reason
        _logger.warning("sample %s left out: %s", where, reason)
        if len(self.reasons) > max(1, int(self.max_fraction * self.total)):
            raise DataError(
                f"{len(self.reasons)} of {self.total} samples are unreadable, the last because: {reason}",
                where,
                "check the shards with `python -m data_tools.inspect`, or raise data.max_bad_fraction",
            )
