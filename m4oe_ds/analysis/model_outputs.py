"""What a compared system gives besides its answers, for every sample: heat-maps, evidence, states, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from m4oe_ds.analysis.session import Session, Skip, tracked
from m4oe_ds.errors import DataError
from m4oe_ds.layers.extras import (
    ASYMMETRY,
    BOX,
    CROP,
    HAZARD_LOGITS,
    HEATMAP,
    ORDINAL,
    STEP_LOGITS,
    STEPS,
    UNCERTAINTY,
    VIEW_WEIGHTS,
    WINDOW,
)
from m4oe_ds.runs.finished import Run
from m4oe_ds.runs.folder import RunFolder

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from m4oe_ds.report.figures import STYLE

SHOWN = 3  # samples of the figure
# extras by name or by what stands before the point: batch first
FAMILIES = tuple(family.kind for family in (HEATMAP, WINDOW, BOX, UNCERTAINTY, ORDINAL))
FIRST = (*FAMILIES, ASYMMETRY, VIEW_WEIGHTS, HAZARD_LOGITS, CROP)
SECOND = (STEP_LOGITS.kind, STEPS)  # steps first, samples second


def collect(run: Run, split: str, limit: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The system's own outputs for every sample of a split, and the views of those with the largest asymmetry.

    Returns:
        Arrays with the samples first, ``keys`` and ``present`` among them; ``{modality: [s, H, W]}`` of up to ``SHOWN``
        samples of a system with heat-maps, in the order of ``shown``, their rows in the first.

    Raises:
        DataError: the model has no such output.
    """
    rows: dict[str, list[np.ndarray]] = {}
    best: list[tuple[float, int, dict[str, np.ndarray]]] = []
    count = 0
    with torch.no_grad():
        for host in tracked(run, split, limit, "outputs of its own"):
            output, keep = run.model(host.to(run.device)), host.valid
            for name, value in output.extras.items():
                kind = name.split(".")[0]
                if kind in FIRST or kind in SECOND:
                    table = value.transpose(0, 1) if kind in SECOND else value
                    table = table.cpu()[keep]
                    rows.setdefault(name, []).append((table.float() if table.is_floating_point() else table).numpy())
            if not rows:
                raise DataError("the model has no outputs of its own, only answers")
            rows.setdefault("keys", []).append(np.array([k for k, kept in zip(host.keys, keep, strict=True) if kept]))
            rows.setdefault("present", []).append(host.present[keep].numpy())
            if "asymmetry" in rows:
                score = (rows["asymmetry"][-1] * rows["present"][-1]).sum(1)
                for row, place in zip(np.flatnonzero(keep.numpy()), range(len(score)), strict=True):
                    views = {name: view[row, 0].float().numpy() for name, view in host.views.items()}
                    best.append((float(score[place]), count + place, views))
                best = sorted(best, key=lambda entry: (-entry[0], entry[1]))[:SHOWN]
            count += int(keep.sum())
    arrays = {name: np.concatenate(parts) for name, parts in rows.items()}
    if not best:
        return arrays, {}
    arrays["shown"] = np.array([row for _, row, _ in best])
    return arrays, {name: np.stack([views[name] for _, _, views in best]) for name in best[0][2]}


def span(count: int, share: float) -> tuple[float, float]:
    """Where the cells of a heat-map begin and end along one side of the view, as shares: each lies at its window's
    centre.

    Args:
        count: windows along the side.
        share: share of the side that one window covers.
    """
    if count * share <= 1 + 1e-6:  # side by side
        return 0.0, count * share
    cell = (1 - share) / (count - 1)  # at every position
    return (share - cell) / 2, (share - cell) / 2 + count * cell


def heatmaps(arrays: Mapping[str, np.ndarray], views: Mapping[str, np.ndarray]) -> Any:
    """Heat-map and window of the largest difference over the views of :func:`collect`; a row per sample."""
    shown, names = arrays["shown"], list(views)
    top = max(float(arrays[f"heatmap.{name}"][shown].max()) for name in names)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = (2.1 * len(names), 2.5 * len(shown))
        figure, axes = plt.subplots(len(shown), len(names), figsize=size, squeeze=False)
        for place, row in enumerate(shown):
            for column, name in enumerate(names):
                axis, image = axes[place, column], views[name][place]
                axis.set(xticks=[], yticks=[])
                axis.set_title(name if place == 0 else "", fontsize=9)
                if not arrays["present"][row, column]:
                    axis.set_xlabel("absent", fontsize=8)
                    continue
                height, width = image.shape
                axis.imshow(image, cmap="gray", extent=(0, width, height, 0))
                heat, box = arrays[f"heatmap.{name}"][row], arrays[f"box.{name}"][row]
                (first, last), (left, right) = span(heat.shape[0], box[2]), span(heat.shape[1], box[3])
                extent = (left * width, right * width, last * height, first * height)
                axis.imshow(heat, cmap="magma", alpha=0.45, extent=extent, vmin=0, vmax=max(top, 1e-9))
                y, x, tall, wide = box * [height, width, height, width]
                axis.add_patch(Rectangle((x, y), wide, tall, fill=False, ec="cyan", lw=1.2))
                axis.set(xlim=(0, width), ylim=(height, 0))
                axis.set_xlabel(f"difference {arrays['asymmetry'][row, column]:.2f}", fontsize=8)
        return figure


def own_outputs(session: Session) -> dict[str, Any]:
    """The section ``own``: writes ``analysis/own-<split>.npz``, and the figure of a system with heat-maps."""
    try:
        arrays, views = collect(session.run, session.options.split, session.options.limit)
    except DataError as error:
        raise Skip(str(error)) from None
    path = RunFolder(session.run.folder).analysis_arrays(f"own-{session.options.split}")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle
    if views:
        rows = [
            {"sample": str(arrays["keys"][row]), "modality": name, "difference": float(arrays["asymmetry"][row, i])}
            | dict(zip(("top", "left", "height", "width"), arrays[f"box.{name}"][row].tolist(), strict=True))
            for row in arrays["shown"]
            for i, name in enumerate(session.run.spec.modalities)
        ]
        session.draw(heatmaps(arrays, views), rows, "own_heatmaps")
    return {"samples": len(arrays["keys"]), "outputs": sorted(arrays), "file": f"analysis/{path.name}"}
