"""Risk scores against follow-up with censoring: concordance, AUC at a horizon, Brier score.

Times are years of follow-up, exact or whole (from labels of ascending horizons by :func:`from_horizon_labels`).
Censoring at a time means: free of the event up to and including that time. So at equal times the censored case outlives
the event, and a case is followed up at time t with probability P(C >= t) = G(t-), G being the Kaplan-Meier estimate of
the censoring distribution (Kaplan and Meier 1958), in which events leave the risk set before censorings of the same
time. With continuous times this is the usual convention, and the values are those of scikit-survival; with whole years,
where times tie, it is what keeps the weights unbiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import DEFAULT, Bootstrap, Estimate, owners


@dataclass(frozen=True)
class FollowUp:
    """What is known of each case.

    Attributes:
        time: ``[N]`` years to the event or to the end of follow-up.
        event: ``[N]`` True where the event was seen.
    """

    time: np.ndarray
    event: np.ndarray

    def __post_init__(self) -> None:
        time, event = np.asarray(self.time, dtype=float), np.asarray(self.event)
        if time.ndim != 1 or time.shape != event.shape or not np.isin(event, (0, 1)).all():
            raise DataError("follow-up needs equally long vectors of times and of 0/1 events")
        if not (np.isfinite(time) & (time >= 0)).all():
            raise DataError("a follow-up time is negative or not finite", fix="leave such cases out and count them")
        object.__setattr__(self, "time", time)
        object.__setattr__(self, "event", event.astype(bool))

    def __len__(self) -> int:
        return len(self.time)

    def at(self, index: np.ndarray) -> FollowUp:
        """The rows of ``index``."""
        return FollowUp(self.time[index], self.event[index])


def from_horizon_labels(labels: ArrayLike) -> tuple[FollowUp, np.ndarray]:
    """Whole-year follow-up from labels "the event within k years", k = 1..H.

    An event in year k (the first label 1) has time k; a case free of it for k years (the last label 0) is censored at
    k. Rows without any label are left out.

    Args:
        labels: ``[N, H]`` 0, 1 or -1 (follow-up too short).

    Returns:
        The follow-up of the rows kept, and their indices ``[K]``.

    Raises:
        DataError: a label that falls with the horizon, or is missing before a known one.
    """
    table = np.asarray(labels)
    if table.ndim != 2 or not np.isin(table, (MISSING, 0, 1)).all():
        raise DataError("horizon labels must be a table of 0, 1 and -1 (missing)", fix="pass a column per horizon")
    known = table != MISSING
    if (known[:, 1:] & ~known[:, :-1]).any():
        raise DataError("a horizon label is missing before a known one", fix="rebuild the labels of this data set")
    if (known[:, 1:] & (table[:, 1:] < table[:, :-1])).any():
        raise DataError("a horizon label falls from 1 to 0", fix="rebuild the labels of this data set")
    kept = np.flatnonzero(known[:, :1].any(axis=1))
    table = table[kept]
    free = (table == 0).sum(axis=1)  # zeros come first: their number is the last year known to be free
    event = (table == 1).any(axis=1)
    return FollowUp(free + event.astype(int), event), kept


@dataclass(frozen=True)
class Censoring:
    """Left-continuous survival of the censoring time, G(t-) = P(C >= t) (Kaplan and Meier 1958).

    Attributes:
        times: ``[J]`` distinct censoring times, ascending.
        survival: ``[J + 1]`` 1, then the value after each.
        last: longest follow-up; nothing is known beyond.
    """

    times: np.ndarray
    survival: np.ndarray
    last: float

    @classmethod
    def fit(cls, data: FollowUp) -> Censoring:
        """Kaplan-Meier estimate with the roles of event and censoring exchanged; events of a time leave first."""
        times, censored = np.unique(data.time[~data.event], return_counts=True)
        ordered, events = np.sort(data.time), np.sort(data.time[data.event])
        reaching = len(data) - np.searchsorted(ordered, times, side="left")
        gone = np.searchsorted(events, times, side="right") - np.searchsorted(events, times, side="left")
        steps = 1.0 - censored / np.maximum(reaching - gone, 1)
        last = float(ordered[-1]) if len(data) else -math.inf
        return cls(times, np.concatenate([[1.0], np.cumprod(steps)]), last)

    def before(self, time: ArrayLike) -> np.ndarray:
        """G(t-) of each time; NaN beyond the longest follow-up, where it is not estimated."""
        asked = np.asarray(time, dtype=float)
        value = self.survival[np.searchsorted(self.times, asked, side="left")]
        return np.where(asked <= self.last, value, np.nan)


def _pairs(data: FollowUp, scores: np.ndarray, weight: np.ndarray) -> float:
    """Weighted share of comparable pairs whose earlier event has the higher score; ties of scores count one half.

    A pair is comparable if the event comes before the other case's time, or the other is censored at that same time.
    ``weight [N]`` belongs to the event of the pair; events of weight 0 take no part. NaN without a pair.
    """
    order = np.lexsort((~data.event, data.time))  # events before censorings of the same time
    time, event, score, mass = data.time[order], data.event[order], scores[order], weight[order]
    agreed = total = 0.0
    for at in np.unique(time[event & (mass > 0)]):
        first = int(np.searchsorted(time, at, side="left"))
        last = first + int(event[first : np.searchsorted(time, at, side="right")].sum())
        later = score[last:]
        if not len(later):
            continue
        mine, masses = score[first:last], mass[first:last]
        if len(mine) > 4:  # whole-year times: many events at once, sorting pays
            later = np.sort(later)
            below = np.searchsorted(later, mine, side="left")
            ties = np.searchsorted(later, mine, side="right") - below
        else:
            below = np.array([np.count_nonzero(later < one) for one in mine])
            ties = np.array([np.count_nonzero(later == one) for one in mine])
        agreed += float((masses * (below + 0.5 * ties)).sum())
        total += float(masses.sum()) * len(later)
    return agreed / total if total else math.nan


def _checked(data: FollowUp, scores: ArrayLike, groups: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 and the patient of each row."""
    score = np.asarray(scores, dtype=float)
    owner = owners(groups, len(data))
    if score.shape != (len(data),) or owner.shape != (len(data),):
        raise DataError(f"scores {score.shape} or groups {owner.shape} for {len(data)} cases", fix="pass one per case")
    if not np.isfinite(score).all():
        raise DataError("a score is not finite", fix="look for a diverged model")
    return score, owner


def _inverse_weight(data: FollowUp, tau: float, censoring: Censoring | None, power: int) -> np.ndarray | None:
    """G(T-)^-power of events up to ``tau`` (0 elsewhere); None where G is zero or not estimated at such an event."""
    chosen = data.event & (data.time <= tau)
    chance = (Censoring.fit(data) if censoring is None else censoring).before(data.time[chosen])
    if not (chance > 0).all():  # also false for NaN
        return None
    weight = np.zeros(len(data))
    weight[chosen] = chance**-power
    return weight


def harrell_c(
    data: FollowUp,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """Harrell's concordance (Harrell et al. 1982, JAMA 247:2543); it depends on the censoring, :func:`uno_c` does not.

    Args:
        data: follow-up.
        scores: ``[N]``, higher = earlier event.
        groups: ``[N]`` patients.
    """
    score, owner = _checked(data, scores, groups)

    def statistic(index: np.ndarray) -> float:
        drawn = data.at(index)
        return _pairs(drawn, score[index], drawn.event.astype(float))

    return bootstrap.estimate(statistic, owner, "no comparable pair: no event before another time")


def uno_c(
    data: FollowUp,
    scores: ArrayLike,
    tau: float,
    train: FollowUp | None = None,
    groups: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """Uno's concordance up to ``tau`` (Uno et al. 2011, Stat. Med. 30:1105, eq. 6): events weigh G(T-)^-2.

    Events at exactly ``tau`` count (the source has T < tau, the same for continuous times), so that tau = 5 includes
    the fifth of whole years. Censored cases of an event's time are comparable to it: see the module.

    Args:
        data: follow-up.
        scores: ``[N]``, higher = earlier event.
        tau: last time considered, years.
        train: where the censoring distribution is estimated; None = ``data`` itself, anew in every resample.
        groups: ``[N]`` patients.
    """
    score, owner = _checked(data, scores, groups)
    censoring = None if train is None else Censoring.fit(train)

    def statistic(index: np.ndarray) -> float:
        drawn = data.at(index)
        weight = _inverse_weight(drawn, tau, censoring, power=2)
        return math.nan if weight is None else _pairs(drawn, score[index], weight)

    return bootstrap.estimate(statistic, owner, _why(data, tau, censoring))


def _why(data: FollowUp, tau: float, censoring: Censoring | None) -> str:
    """Reason of an undefined weighted value."""
    if _inverse_weight(data, tau, censoring, power=1) is None:
        return "an event lies where the censoring distribution is zero or unknown: lower tau"
    return f"no event up to {tau:g} years with a case followed longer"


def horizon_auc(
    data: FollowUp,
    scores: ArrayLike,
    horizon: float,
    train: FollowUp | None = None,
    weighted: bool = True,
    groups: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> dict[str, Any]:
    """Cumulative/dynamic AUC at a horizon (Heagerty et al. 2000; weights of Uno et al. 2007, JASA 102:527, and Hung and
    Chiang 2010, Can. J. Stat. 38:8): events up to the horizon against cases free of the event at it.

    Cases censored earlier belong to neither side. With ``weighted`` an event weighs 1 / G(T-), which makes up for the
    late events that censoring hides; the weight of the controls is one constant and cancels. Without, it is the plain
    n-year AUC over eligible cases (Yala et al. 2021).

    Args:
        data: follow-up.
        scores: ``[N]``, higher = event more likely.
        horizon: time in years.
        train: where the censoring distribution is estimated; None = ``data`` itself.
        groups: ``[N]`` patients.

    Returns:
        The fields of :class:`Estimate`, ``horizon``, and counts ``events, controls, excluded``.
    """
    score, owner = _checked(data, scores, groups)
    censoring = None if train is None else Censoring.fit(train)

    def statistic(index: np.ndarray) -> float:
        drawn = data.at(index)
        weight = _inverse_weight(drawn, horizon, censoring, power=1) if weighted else drawn.event.astype(float)
        return math.nan if weight is None else _area(drawn, score[index], weight, horizon)

    case, control = _sides(data, horizon)
    why = "no event up to the horizon" if not case.any() else "no case followed free of the event to the horizon"
    if case.any() and control.any():
        why = _why(data, horizon, censoring)
    estimate = bootstrap.estimate(statistic, owner, why)
    counts = {"events": int(case.sum()), "controls": int(control.sum()), "excluded": int((~case & ~control).sum())}
    return {"horizon": horizon, **counts, **estimate.as_dict()}


def _sides(data: FollowUp, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Events up to the horizon, and cases known to be free of the event at it."""
    case = data.event & (data.time <= horizon)
    control = (data.time > horizon) | (~data.event & (data.time == horizon))
    return case, control


def _area(data: FollowUp, scores: np.ndarray, weight: np.ndarray, horizon: float) -> float:
    case, control = _sides(data, horizon)
    if not case.any() or not control.any():
        return math.nan
    free = np.sort(scores[control])
    below = np.searchsorted(free, scores[case], side="left")
    ties = np.searchsorted(free, scores[case], side="right") - below
    return float((weight[case] * (below + 0.5 * ties)).sum() / (weight[case].sum() * len(free)))


def censored_brier(
    data: FollowUp,
    risk: ArrayLike,
    horizon: float,
    train: FollowUp | None = None,
    groups: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """Brier score of the risk up to a horizon under censoring (Graf et al. 1999, Stat. Med. 18:2529).

    Mean over all cases of (1 - r)^2 / G(T-) for events up to the horizon and r^2 / G(horizon-) for cases free of the
    event at it; cases censored earlier add 0.

    Args:
        data: follow-up.
        risk: ``[N]`` probability of the event up to ``horizon`` years.
        train: see :func:`horizon_auc`.
        groups: see :func:`horizon_auc`.

    Raises:
        DataError: a risk outside [0, 1].
    """
    probability, owner = _checked(data, risk, groups)
    if ((probability < 0) | (probability > 1)).any():
        raise DataError("a risk lies outside [0, 1]", fix="pass probabilities, not logits")
    censoring = None if train is None else Censoring.fit(train)

    def statistic(index: np.ndarray) -> float:
        drawn = data.at(index)
        known = Censoring.fit(drawn) if censoring is None else censoring
        return _brier(drawn, probability[index], horizon, known)

    why = "the censoring distribution is zero or unknown at a time that is needed: choose a shorter horizon"
    return bootstrap.estimate(statistic, owner, why)


def _brier(data: FollowUp, risk: np.ndarray, horizon: float, censoring: Censoring) -> float:
    case, control = _sides(data, horizon)
    weight = np.zeros(len(data))
    weight[case] = censoring.before(data.time[case])
    weight[control] = censoring.before(horizon)
    used = case | control
    if not used.any() or not (weight[used] > 0).all():
        return math.nan
    return float((((case - risk) ** 2)[used] / weight[used]).sum() / len(data))


def integrated_brier(
    data: FollowUp,
    risks: ArrayLike,
    horizons: ArrayLike,
    train: FollowUp | None = None,
    groups: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """Mean Brier score over a range of horizons by the trapezoidal rule (Graf et al. 1999).

    Args:
        data: follow-up.
        risks: ``[N, H]`` probability of the event up to each horizon.
        horizons: ``[H]`` ascending years, H >= 2.
        train: see :func:`horizon_auc`.
        groups: see :func:`horizon_auc`.
    """
    table, years = np.asarray(risks, dtype=float), np.asarray(horizons, dtype=float)
    if table.shape != (len(data), len(years)) or len(years) < 2 or not (np.diff(years) > 0).all():
        raise DataError(
            f"risks {table.shape} for {len(data)} cases and {len(years)} horizons", fix="ascending, two or more"
        )
    _, owner = _checked(data, table.sum(axis=1), groups)  # the sum is finite where every risk is
    if ((table < 0) | (table > 1)).any():
        raise DataError("a risk lies outside [0, 1]", fix="pass probabilities, not logits")
    censoring = None if train is None else Censoring.fit(train)

    def statistic(index: np.ndarray) -> float:
        drawn = data.at(index)
        known = Censoring.fit(drawn) if censoring is None else censoring
        scores = [_brier(drawn, table[index, k], year, known) for k, year in enumerate(years)]
        return float(np.trapezoid(scores, years) / (years[-1] - years[0]))

    why = "the Brier score of a horizon is undefined"
    return bootstrap.estimate(statistic, owner, why)


def follow_up_report(
    labels: ArrayLike,
    risks: ArrayLike,
    groups: ArrayLike | None = None,
    train_labels: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> dict[str, Any]:
    """Everything above for the tasks of one event, horizons 1..H, of one split, ready for JSON.

    The score of the concordances is the risk of the longest horizon.

    Args:
        labels: ``[N, H]`` 0, 1, -1.
        risks: ``[N, H]`` P(event within k years).
        groups: ``[N]`` patients.
        train_labels: ``[M, H]`` labels of the training split, for the censoring distribution; None = this split.
    """
    data, kept = from_horizon_labels(labels)
    table = np.asarray(risks, dtype=float)
    if table.shape != np.asarray(labels).shape:
        raise DataError(f"risks {table.shape} for labels {np.asarray(labels).shape}", fix="pass one risk per label")
    owner = owners(groups, len(table))[kept]
    table, width = table[kept], table.shape[1]
    train = None if train_labels is None else from_horizon_labels(train_labels)[0]
    options: dict[str, Any] = {"groups": owner, "bootstrap": bootstrap}
    horizons = []
    for k in range(width):
        entry = horizon_auc(data, table[:, k], k + 1, train, True, **options)
        plain = horizon_auc(data, table[:, k], k + 1, None, False, **options)
        brier = censored_brier(data, table[:, k], k + 1, train, **options)
        horizons.append({"horizon": k + 1, "auc": entry, "auc_unweighted": plain, "brier": brier.as_dict()})
    years = np.arange(1, width + 1)
    result = {
        "n": len(data),
        "events": int(data.event.sum()),
        "rows_without_labels": len(np.asarray(labels)) - len(kept),
        "censoring_from": "this split" if train is None else "training split",
        "uno_c": uno_c(data, table[:, -1], width, train, **options).as_dict(),
        "harrell_c": harrell_c(data, table[:, -1], **options).as_dict(),
        "horizons": horizons,
    }
    if width > 1:
        result["integrated_brier"] = integrated_brier(data, table, years, train, **options).as_dict()
    return result
