"""A metric per subgroup (age band, density, race, manufacturer) and for all; small groups as counts only.

Reporting by subgroup follows CLAIM 2024 (Tejani et al., Radiol. Artif. Intell. 6:e240300) and TRIPOD+AI (Collins et al.
2024, BMJ 385:e078378).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.cases import class_probabilities
from m4oe_ds.evaluation.intervals import DEFAULT, Bootstrap, Estimate
from m4oe_ds.evaluation.metrics import Statistic, named_statistic

UNKNOWN = "unknown"
_NOTHING = frozenset({"", "nan", "none", "null", UNKNOWN})


@dataclass(frozen=True)
class SubgroupRow:
    """One group of one attribute.

    Attributes:
        attribute: e.g. ``manufacturer``; ``all`` for the whole.
        group: e.g. ``hologic``; ``all`` for the whole.
        n: number of labelled rows.
        n_groups: patients of the labelled rows.
        class_counts: rows per class.
        positives: cases of class 1 in a binary task, else None.
        unlabelled: rows of the group without a label.
        estimate: None where only counts are shown; ``reason`` says why.
    """

    attribute: str
    group: str
    n: int
    n_groups: int
    class_counts: list[int]
    positives: int | None
    unlabelled: int
    estimate: Estimate | None
    reason: str = ""


@dataclass(frozen=True)
class SubgroupTable:
    """All groups of all attributes for one metric.

    Attributes:
        metric: name of the metric.
        min_patients: patients below which only counts are shown.
        min_positives: positives or negatives below which only counts are shown.
        rows: the whole first.
    """

    metric: str
    min_patients: int
    min_positives: int
    rows: list[SubgroupRow]

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


def subgroup_table(
    labels: ArrayLike,
    probability: ArrayLike,
    groups: ArrayLike,
    attributes: Mapping[str, ArrayLike],
    metric: str | Statistic = "auroc",
    min_patients: int = 20,
    min_positives: int = 5,
    bootstrap: Bootstrap = DEFAULT,
) -> SubgroupTable:
    """Metric, counts and patient-clustered interval per group.

    Args:
        labels: ``[N]`` classes, -1 missing.
        probability: ``[N, C]``, or ``[N]`` P(y = 1).
        groups: ``[N]`` patients.
        attributes: per name a value ``[N]`` for each row; empty, None and NaN are the group ``unknown``.
        metric: a name of :data:`m4oe_ds.evaluation.metrics.STATISTICS` or a function of labels and probabilities.
        min_patients: smaller groups are shown as counts only.
        min_positives: in a binary task, groups with fewer positives or fewer negatives are also given as counts only.

    Raises:
        DataError: unequal lengths, or labels outside the classes.
    """
    known, table = class_probabilities(labels, probability)
    owner = np.asarray(groups)
    if owner.shape != known.shape:
        raise DataError(f"groups {owner.shape} for labels {known.shape}", fix="pass one patient per row")
    name, statistic = named_statistic(metric)

    def row(attribute: str, group: str, member: np.ndarray) -> SubgroupRow:
        rows = np.flatnonzero(member & (known != MISSING))
        truth, mine = known[rows], owner[rows]
        counts = np.bincount(truth, minlength=table.shape[1]).tolist()
        patients = len(np.unique(mine))
        reason = too_small(counts, patients, min_patients, min_positives)
        estimate = None
        if not reason:
            estimate = bootstrap.estimate(lambda index: statistic(truth[index], table[rows[index]]), mine)
            reason = estimate.reason
        positives = counts[1] if table.shape[1] == 2 else None
        missing = int(member.sum()) - len(rows)
        return SubgroupRow(attribute, group, len(rows), patients, counts, positives, missing, estimate, reason)

    found = [row("all", "all", np.ones(len(known), dtype=bool))]
    for attribute, values in attributes.items():
        texts = group_names(values)
        if texts.shape != known.shape:
            raise DataError(f"{len(texts)} values for {len(known)} rows", attribute, fix="pass one value per row")
        order = sorted(np.unique(texts).tolist(), key=_place)
        found.extend(row(attribute, group, texts == group) for group in order)
    return SubgroupTable(name, min_patients, min_positives, found)


def _place(text: str) -> tuple[bool, float, int, str]:
    """Where a group stands: bands of a number by the number, ``<40`` before ``40-49``; what is unknown last."""
    found = re.fullmatch(r"(<|>=)?(-?[\d.]+)(?:-| to <.*)?[\d.]*", text)
    number = float(found[2]) if found else math.inf
    return text == UNKNOWN, number, {"<": -1, ">=": 1}.get((found and found[1]) or "", 0), text


def too_small(counts: list[int], patients: int, min_patients: int, min_positives: int) -> str:
    """Why only counts are shown; empty if the metric may be.

    Args:
        counts: rows per class; two of a binary task.
        patients: patients that the rows come from.
        min_patients: least number of them.
        min_positives: least number of positives and of negatives.
    """
    if patients < min_patients:
        return f"fewer than {min_patients} patients: counts only"
    if len(counts) == 2 and min(counts) < min_positives:
        return f"fewer than {min_positives} positives or negatives: counts only"
    return ""


def group_names(values: ArrayLike) -> np.ndarray:
    """Texts ``[N]`` of the values of an attribute; empty, None, NaN (any case) become ``unknown``."""
    items = np.asarray(values, dtype=object).ravel()
    texts = [UNKNOWN if str(item).strip().lower() in _NOTHING else str(item).strip() for item in items]
    return np.array(texts, dtype=object)
