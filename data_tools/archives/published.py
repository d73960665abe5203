"""Label counts of the whole public archives, to compare a conversion with: as counts where they are known, else as
shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m4oe_ds.data.schema import MISSING

SHARE_TOLERANCE = 0.02  # of a class among the known labels
COUNT_TOLERANCE = 0.02  # of a class's count: some images are damaged or lack a partner
COUNT_SLACK = 2  # samples that rounding and single faults may cost whatever the count

Histograms = Mapping[str, Mapping[str, Mapping[str, int]]]  # {split: {task: {code: samples}}}


@dataclass(frozen=True)
class Published:
    """What is published about some splits together.

    Attributes:
        name: shown in the report.
        splits: those of our splits that the numbers cover.
        labels: ``{task: {code: number}}`` per sample (breast or eye).
        counted: whether the numbers are counts; otherwise they are shares.
    """

    name: str
    splits: tuple[str, ...]
    labels: dict[str, dict[str, float]]
    counted: bool

    def share(self, task: str, code: int) -> float | None:
        """Share of a class among the known labels; None if nothing is published."""
        numbers = self.labels.get(task, {})
        return numbers[str(code)] / sum(numbers.values()) if str(code) in numbers else None


def coded(counts: Mapping[str, int], codes: Mapping[Any, int], key: Any = str, times: int = 1) -> dict[str, float]:
    """Counts by our codes from counts by the archive's values; values without a code are left out.

    Args:
        counts: counts by the archive's values.
        codes: our codes.
        key: makes the key of ``codes`` from a value.
        times: samples that each count stands for.
    """
    out: Counter[str] = Counter()
    for value, count in counts.items():
        code = codes.get(key(value), MISSING)
        if code != MISSING:
            out[str(code)] += times * count
    return {code: float(count) for code, count in sorted(out.items())}


def unlike_published(sources: Sequence[Published], histograms: Histograms) -> Counter[str]:
    """Classes that are rarer or more frequent than published, by kind of statement; empty if none.

    ``label_counts_unlike_published`` also tells that an archive is not complete.
    """
    found: Counter[str] = Counter()
    for source in sources:
        for task, numbers in source.labels.items():
            counts: Counter[str] = Counter()
            for split in source.splits:
                counts.update({c: n for c, n in histograms.get(split, {}).get(task, {}).items() if c != str(MISSING)})
            total, whole = sum(counts.values()), sum(numbers.values())
            for code, expected in numbers.items():
                if total:
                    apart = abs(counts[code] / total - expected / whole)
                    found["label_shares_unlike_published"] += apart > SHARE_TOLERANCE
                if source.counted:
                    apart = abs(counts[code] - expected)
                    found["label_counts_unlike_published"] += apart > COUNT_TOLERANCE * expected + COUNT_SLACK
    return +found
