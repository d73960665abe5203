"""What a linear model makes of the same shards: the reference a network on a small data set has to beat.

Images are shrunk to 24 x 24 pixels, put side by side, reduced to 40 principal components (fitted on the training split)
and given to a logistic regression, or a ridge regression for a number. A mask is answered by the mean training mask at
one half. Absent modalities are zeros after standardisation; a column of a table is its standardised number or one-hot
category. Figures come from the functions that judge a run, with intervals that resample whole groups.

    python benchmarks/linear_baseline.py data/my [--split test]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.schema import ModalitySpec, TaskSpec
from m4oe_ds.data.stream import Sampling, ShardStream
from m4oe_ds.data.task_statistics import statistics_of
from m4oe_ds.errors import UserError
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.metrics_text import format_table

SIDE, SLICES, COMPONENTS = 24, 8, 40
MASK_SIDE = 96  # masks are judged at the size that configs/small.yaml trains at


def read(folder: Path, manifest: Manifest, train: Manifest) -> list[Batch]:
    """All samples of a split, one batch each, standardised as training would."""
    reading = Reading(
        manifest.card.inputs,
        manifest.tasks,
        (MASK_SIDE, MASK_SIDE),
        (SLICES, SIDE, SIDE),
        normalise=train.normalisation(),
    )
    stream = ShardStream(folder, manifest, reading, Share(0, 1, 1), Sampling(), workers=0)
    return list(stream.evaluation())


def features(batches: list[Batch], inputs: tuple[ModalitySpec, ...]) -> np.ndarray:
    """``[N, F]`` of all modalities side by side."""
    from torch.nn.functional import adaptive_avg_pool2d

    rows = []
    for batch in batches:
        parts = []
        for spec in inputs:
            view = batch.views[spec.name][0]
            if spec.kind == "table":
                for (value, known), column in zip(view.tolist(), spec.columns, strict=True):
                    several = len(column.values)
                    parts.append(known * np.eye(several)[int(value)] if several else np.array([value]))
            elif spec.flat:
                parts.append(adaptive_avg_pool2d(view, (SIDE, SIDE)).flatten().numpy())
            else:
                parts.append(view.flatten().numpy())
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def answers(batches: list[Batch], task: TaskSpec) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a task, and which are known."""
    k = batches[0].tasks.index(task.name)
    known = np.array([bool(batch.label_mask[0, k]) for batch in batches])
    return np.stack([batch.labels[task.name][0].numpy() for batch in batches]), known


def predict(task: TaskSpec, train: Any, test: Any) -> dict[str, np.ndarray]:
    """Arrays of a split's predictions, by the names of ``predictions/<split>.npz``."""
    (x, (y, known)), (x_test, (y_test, known_test)) = train, test
    name = task.name
    reduce = [StandardScaler(), PCA(min(COMPONENTS, int(known.sum()) - 1, x.shape[1]), random_state=0)]
    if task.coded:
        model = make_pipeline(*reduce, StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        probability = np.zeros((len(x_test), task.num_classes))
        model.fit(x[known], y[known])
        probability[:, model.classes_] = model.predict_proba(x_test)
        return {f"prob_{name}": probability, f"label_{name}": np.where(known_test, y_test, -1)}
    if task.kind == "number":
        model = make_pipeline(*reduce, RidgeCV(np.logspace(-1, 4, 11))).fit(x[known], y[known])
        return {f"value_{name}": model.predict(x_test), f"label_{name}": np.where(known_test, y_test, np.nan)}
    mean = y[known].mean(0) >= 0.5  # [C, H, W]
    both = (mean & (y_test > 0.5)).reshape(len(y_test), task.num_classes, -1).sum(-1)
    size = mean.reshape(task.num_classes, -1).sum(-1) + y_test.reshape(len(y_test), task.num_classes, -1).sum(-1)
    dice = np.where(known_test[:, None], 2 * both / np.maximum(size, 1), np.nan)
    area = (y_test > 0.5).reshape(len(y_test), task.num_classes, -1).mean(-1)  # share of the picture
    found = {f"dice_{name}": dice, f"area_{name}": np.where(known_test[:, None], area, np.nan)}
    return found if task.num_classes > 1 else {key: values[:, 0] for key, values in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Prints the table of a split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--split", default="test", help="split to judge; default test")
    options = parser.parse_args(arguments)
    try:
        manifests = {split: Manifest.load(options.folder / split) for split in ("train", options.split)}
        batches = {
            split: read(options.folder / split, manifest, manifests["train"]) for split, manifest in manifests.items()
        }
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    card = manifests["train"].card
    tasks = [task for task in card.tasks if task.kind != "survival"]
    x, x_test = (features(batches[split], card.inputs) for split in ("train", options.split))
    arrays: dict[str, np.ndarray] = {
        "keys": np.array([batch.keys[0] for batch in batches[options.split]]),
        "groups": np.array([batch.groups[0] for batch in batches[options.split]]),
    }
    for task in tasks:
        arrays |= predict(task, (x, answers(batches["train"], task)), (x_test, answers(batches[options.split], task)))
    kind = "synthetic " if manifests["train"].synthetic else ""
    print(f"{card.title}: linear baseline, {len(x)} {kind}training samples, {options.split} split")
    known = statistics_of(manifests["train"], tasks)
    print(format_table(evaluate_split(arrays, tasks, train=known)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
