"""Modality competition (M4oE Fig. 3a): how good is each modality's encoder of a multi-modal model on its own?

``linear``: freeze the encoder, fit the same linear classifier on its mean-pooled training features, score on the test
split; the encoder of a model trained on that modality alone is the twin it is compared with. ``mask``: keep the trained
fusion and heads, and replace the other modalities' encoder outputs by their training means.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from m4oe_ds.analysis.collect import Features
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import MISSING, TaskSpec
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.paired import paired_difference
from m4oe_ds.models.interface import MultiModalModel, Tokens

METRICS = ("auroc", "balanced_accuracy")


def linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int, regularisation: float = 1.0
) -> np.ndarray | None:
    """Class probabilities ``[N', C]`` of a logistic regression on standardised features; None with fewer than two
    classes.

    Args:
        train: ``[N, d]``.
        labels: ``[N]``, -1 missing.
        test: ``[N', d]``.
        regularisation: inverse strength of the L2 term.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = labels != MISSING
    classes = np.unique(labels[known])
    if len(classes) < 2:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=500))
    with warnings.catch_warnings():
        # separable features have no finite optimum; the ranking they give is settled long before
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train[known], labels[known])
    found = np.zeros((len(test), num_classes))
    found[:, classes] = model.predict_proba(test)
    return found


def probe_encoders(
    train: Features, test: Features, tasks: Iterable[TaskSpec]
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Linear probes of every encoder: ``{(task, modality): (rows of test, probabilities [len(rows), C])}``.

    Only samples that have the modality take part.
    """
    found = {}
    modalities = tuple(train.encoder)
    for task in tasks:
        if not task.coded:
            continue
        for i, name in enumerate(modalities):
            fit, rows = train.present[:, i], np.flatnonzero(test.present[:, i])
            if not len(rows):
                continue
            probability = linear_probe(
                train.encoder[name][fit], train.labels[task.name][fit], test.encoder[name][rows], task.num_classes
            )
            if probability is not None:
                found[task.name, name] = rows, probability
    return found


def scored(
    task: TaskSpec, labels: np.ndarray, probability: np.ndarray, groups: np.ndarray, resamples: int
) -> dict[str, Any]:
    """``{metric: {value, low, high}, n}`` with intervals over patients."""
    content = {
        f"label_{task.name}": labels,
        f"prob_{task.name}": probability,
        "groups": groups,
        "keys": np.arange(len(labels)),
    }
    entry = evaluate_split(content, (task,), resamples=resamples)["tasks"][task.name]
    return {"n": entry["n"], **{name: entry["metrics"][name] for name in METRICS if name in entry["metrics"]}}


@torch.no_grad()
def masked_probabilities(
    model: MultiModalModel,
    batches: Iterable[Batch],
    means: Tokens,
    modality: str,
    device: torch.device,
    keys: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The model's class probabilities ``{task: [N, C]}`` when only ``modality`` is as encoded, for samples that have
    it.

    The other modalities' encoder outputs are their training means, and count as present: the fusion sees what it was
    trained on, without information about the sample.

    Args:
        means: ``means`` of :class:`Features`.
        keys: samples to keep; None = all.

    Returns:
        Probabilities, and ``key [N]``.
    """
    column = model.spec.modalities.index(modality)
    rows: dict[str, list[np.ndarray]] = {"key": []}
    wanted = None if keys is None else set(keys.tolist())
    for host in batches:
        batch = host.to(device, torch.float32)
        tokens = model.encode(batch)
        size = len(batch)
        for name in model.spec.modalities:
            if name == modality:
                continue
            mean = means.by_modality[name].to(device)
            tokens.by_modality[name] = mean.expand(size, -1, -1)
            if name in tokens.maps:
                tokens.maps[name] = [m.to(device).expand(size, *m.shape[1:]) for m in means.maps[name]]
        tokens.present = torch.ones_like(tokens.present)
        output = model.predict(model.fuse(tokens, batch))
        keep = (batch.valid & batch.present[:, column]).cpu().numpy()
        if wanted is not None:
            keep &= np.array([key in wanted for key in batch.keys])
        rows["key"].append(np.array(batch.keys)[keep])
        for task in model.spec.tasks:
            if task.coded:
                probability = output.logits[task.name].float().softmax(1).cpu().numpy()
                rows.setdefault(task.name, []).append(probability[keep])
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def competition(
    tasks: Iterable[TaskSpec],
    train: Features,
    test: Features,
    masked: Mapping[str, Mapping[str, np.ndarray]],
    twins: Mapping[str, tuple[Features, Features]],
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Rows of Fig. 3a, one per task, modality and protocol.

    Args:
        train: training features of the multi-modal model.
        test: test features of the multi-modal model.
        masked: ``{modality: masked_probabilities(...)}``, may be empty.
        twins: ``{modality: (train, test)}`` features of models trained on that modality alone, may be empty.
        resamples: bootstrap resamples of patients.

    Returns:
        ``task``, ``modality``, ``protocol`` (``linear`` or ``mask``), ``multimodal`` (scores), and where there is a
        twin ``unimodal`` (scores) and ``drop``: AUROC of the twin minus that of the multi-modal encoder on the same
        samples, with a paired interval over patients.
    """
    tasks = tuple(tasks)
    probes = probe_encoders(train, test, tasks)
    twin_probes = {name: probe_encoders(*pair, tasks) for name, pair in twins.items()}
    row_of = {key: row for row, key in enumerate(test.keys.tolist())}
    found = []
    for task in tasks:
        if not task.coded:
            continue
        for name in train.encoder:
            if (task.name, name) in probes:
                rows, probability = probes[task.name, name]
                entry = _row(task, name, "linear", rows, probability, test, resamples)
                twin = twin_probes.get(name, {}).get((task.name, name))
                if twin is not None:
                    entry |= _drop(task, rows, probability, twin, test, twins[name][1], resamples)
                found.append(entry)
            if name in masked:
                rows = np.array([row_of[key] for key in masked[name]["key"].tolist() if key in row_of], dtype=np.int64)
                kept = np.array([key in row_of for key in masked[name]["key"].tolist()], dtype=bool)
                found.append(_row(task, name, "mask", rows, masked[name][task.name][kept], test, resamples))
    return found


def _row(
    task: TaskSpec,
    modality: str,
    protocol: str,
    rows: np.ndarray,
    probability: np.ndarray,
    test: Features,
    resamples: int,
) -> dict[str, Any]:
    score = scored(task, test.labels[task.name][rows], probability, test.groups[rows], resamples)
    return {"task": task.name, "modality": modality, "protocol": protocol, "multimodal": score}


def _drop(
    task: TaskSpec,
    rows: np.ndarray,
    probability: np.ndarray,
    twin: tuple[np.ndarray, np.ndarray],
    test: Features,
    twin_test: Features,
    resamples: int,
) -> dict[str, Any]:
    """Scores of the twin, and the difference on the samples both have."""
    twin_rows, twin_probability = twin
    place = {key: at for at, key in enumerate(twin_test.keys[twin_rows].tolist())}
    keys = test.keys[rows].tolist()
    here = np.array([at for at, key in enumerate(keys) if key in place], dtype=np.int64)
    there = np.array([place[key] for key in keys if key in place], dtype=np.int64)
    labels, groups = test.labels[task.name][rows[here]], test.groups[rows[here]]
    bootstrap = Bootstrap(resamples)
    difference = paired_difference(labels, twin_probability[there], probability[here], groups, "auroc", bootstrap)
    return {
        "unimodal": scored(task, labels, twin_probability[there], groups, resamples),
        "drop": {"value": difference.difference, "low": difference.low, "high": difference.high},
    }
