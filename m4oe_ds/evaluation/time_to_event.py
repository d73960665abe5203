"""Metrics of a survival task by the functions of :mod:`m4oe_ds.evaluation.survival`, next to Kaplan-Meier.

The censoring distribution that weights need is that of the evaluated split itself, anew in every resample.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics, event_shares
from m4oe_ds.evaluation.intervals import Bootstrap, Estimate, metric_entry
from m4oe_ds.evaluation.survival import FollowUp, censored_brier, harrell_c, horizon_auc, integrated_brier, uno_c

CHANCE = 0.5  # concordance and area of one risk for everybody


def evaluate_survival(
    task: TaskSpec,
    labels: np.ndarray,
    risks: np.ndarray,
    groups: np.ndarray,
    bootstrap: Bootstrap,
    train: TaskStatistics | None = None,
) -> dict[str, Any]:
    """JSON-ready ``uno_c``, ``harrell_c``, ``integrated_brier`` (of several horizons), ``auc_<h>``, ``brier_<h>``.

    Concordances rank by the risk of the longest horizon; Uno's goes up to it.

    Args:
        task: the task, with its horizons.
        labels: ``[N, 2]`` time and event, all known.
        risks: ``[N, H]`` P(event within each horizon).
        groups: ``[N]`` patients.
        bootstrap: how intervals are made.
        train: training labels; without them Kaplan-Meier is that of the split itself, which flatters it.

    Returns:
        Also ``events``, ``horizons`` (events, controls, excluded, mean predicted risk, Kaplan-Meier of the split),
        ``baseline`` (of the Kaplan-Meier risks for everybody; ``of``: whose), and why values are undefined.
    """
    entry: dict[str, Any] = {
        "kind": "survival",
        "n": len(labels),
        "n_groups": len(np.unique(groups)),
        "unit": task.unit,
        "event": task.event,
        "events": int(labels[:, 1].sum()),
        "metrics": {},
        "beats_chance": False,
        "note": "" if len(labels) else "no labelled samples",
    }
    if not len(labels):
        return entry
    data = FollowUp(labels[:, 0], labels[:, 1])
    # the labels are float32, in which a horizon such as 0.1 is another number
    horizons = [float(horizon) for horizon in np.asarray(task.horizons, dtype=labels.dtype)]
    observed = event_shares(data.time, data.event, horizons)
    trained = train.risks if train is not None else ()
    constant = np.tile(trained or observed, (len(data), 1))
    found, counts = _estimates(task, data, risks, horizons, groups, bootstrap)
    trivial = _estimates(task, data, constant, horizons, groups, Bootstrap(0))[0]
    for one, predicted, share in zip(counts, risks.mean(0).tolist(), observed, strict=True):
        one |= {"predicted": predicted, "observed": share}
    entry["baseline"] = {
        "of": "Kaplan-Meier of the training split" if trained else "Kaplan-Meier of this split",
        "risks": constant[0].tolist(),
        **{name: one.value if "brier" in name else CHANCE for name, one in trivial.items()},
    }
    entry["metrics"] = {name: metric_entry(one.value, one.low, one.high) for name, one in found.items()}
    return entry | {
        "horizons": counts,
        "reasons": {name: one.reason for name, one in found.items() if one.reason},
        "undefined_resamples": max(one.undefined_resamples for one in found.values()),
        "censoring_from": "this split",
        "beats_chance": (found["uno_c"].low or 0.0) > CHANCE,
    }


def _estimates(
    task: TaskSpec,
    data: FollowUp,
    risks: np.ndarray,
    horizons: list[float],
    groups: np.ndarray,
    bootstrap: Bootstrap,
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """Metrics by name, and per horizon the numbers of events, controls and cases of neither side."""
    options: dict[str, Any] = {"groups": groups, "bootstrap": bootstrap}
    found = {
        "uno_c": uno_c(data, risks[:, -1], horizons[-1], **options),
        "harrell_c": harrell_c(data, risks[:, -1], **options),
    }
    if len(horizons) > 1:
        found["integrated_brier"] = integrated_brier(data, risks, horizons, **options)
    counts = []
    for k, horizon in enumerate(horizons):
        name = f"{task.horizons[k]:g}"
        area = horizon_auc(data, risks[:, k], horizon, **options)
        area.pop("horizon")
        counts.append({"horizon": task.horizons[k], **{key: area.pop(key) for key in _SIDES}})
        found[f"auc_{name}"] = Estimate(**area)
        found[f"brier_{name}"] = censored_brier(data, risks[:, k], horizon, **options)
    return found, counts


_SIDES = ("events", "controls", "excluded")
