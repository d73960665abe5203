"""Label counts of the whole public archives, to compare a conversion with: as counts where they are known, else as
shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.archives.tables import number
from m4oe_ds.data.schema import MISSING, SPLITS

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


def _coded(counts: Mapping[str, int], codes: Mapping[Any, int], key: Any = str, times: int = 1) -> dict[str, float]:
    """Counts by our codes from counts by the archive's values; values without a code are left out."""
    out: Counter[str] = Counter()
    for value, count in counts.items():
        code = codes.get(key(value), MISSING)
        if code != MISSING:
            out[str(code)] += times * count
    return {code: float(count) for code, count in sorted(out.items())}


def published(dataset: str, preprocessing: Mapping[str, Any]) -> list[Published]:
    """What is known of a data set under the options of a conversion (``birads_scheme``, ``birads_sites``)."""
    scheme = str(preprocessing.get("birads_scheme", "triage"))
    if dataset == "rsna":
        from data_tools.archives import rsna

        part = "" if preprocessing.get("birads_sites") == "all" else "_site1"
        labels = {
            # a patient's density counts for both breasts
            "density": _coded(rsna.EXPECTED["density_by_patient"], rsna.DENSITY, times=2),
            "birads": _coded(rsna.EXPECTED[f"birads_by_breast{part}"], rsna.BIRADS_SCHEMES[scheme], number),
        }
        return [Published("published", SPLITS, labels, counted=True)]
    if dataset == "vindr":
        from data_tools.archives import vindr

        found = []
        for name, official, splits in (("train and val", "training", SPLITS[:2]), ("test", "test", SPLITS[2:])):
            labels = {
                "density": _coded(
                    vindr.EXPECTED[f"density_by_breast_{official}"], vindr.DENSITY, lambda value: f"DENSITY {value}"
                ),
                "birads": _coded(
                    vindr.EXPECTED[f"birads_by_breast_{official}"],
                    vindr.BIRADS_SCHEMES[scheme],
                    lambda value: f"BI-RADS {value}",
                ),
            }
            found.append(Published(f"published, {name}", splits, labels, counted=True))
        return found
    if dataset == "gamma":
        from data_tools.archives import gamma

        codes = {name: code for code, name in enumerate(gamma.CLASSES)}
        return [Published("published", SPLITS, {"glaucoma": _coded(gamma.EXPECTED["grade"], codes)}, counted=True)]
    if dataset == "embed":  # per breast; counts differ between the drops of the tables
        density = {"0": 0.099, "1": 0.419, "2": 0.428, "3": 0.054}
        return [Published("published", SPLITS, {"density": density}, counted=False)]
    return []


def unlike_published(dataset: str, preprocessing: Mapping[str, Any], histograms: Histograms) -> Counter[str]:
    """Classes that are rarer or more frequent than published, by kind of statement; empty if none.

    ``label_counts_unlike_published`` also tells that an archive is not complete.
    """
    found: Counter[str] = Counter()
    for source in published(dataset, preprocessing):
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
