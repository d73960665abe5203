"""Figures for TensorBoard at every validation during training, in the layout of the report and of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m4oe_ds.analysis.conflict import conflict_pairs, conflict_rows
from m4oe_ds.analysis.routing_statistics import RoutingSums, view_of
from m4oe_ds.data.batch import Batch
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.models.interface import ModelOutput, ModelSpec


class ValidationFigures:
    """Gathers what the figures need while a split is predicted; size independent of the number of samples.

    Args:
        spec: specification of the model.
        name: name of the model, for titles.
    """

    def __init__(self, spec: ModelSpec, name: str) -> None:
        self.spec, self.name = spec, name
        self._sums = RoutingSums(spec)

    @torch.no_grad()
    def add(self, batch: Batch, output: ModelOutput) -> None:
        """Adds the routing of a batch of this rank; models without task-slotted routing add nothing."""
        routing = output.routing.get("mtoe")
        if routing is not None and output.modality_of_token is not None:
            view = view_of("mtoe", routing, output.modality_of_token, self.spec.task_names, len(self.spec.modalities))
            self._sums.add(view, batch.valid, batch.label_mask)

    def reduce(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Joins the ranks. Collectives: those of :meth:`RoutingSums.reduce`; every rank must call it."""
        self._sums.reduce(sum_over_ranks)

    def draw(self, predictions: Predictions, report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Matplotlib figures by name: ``roc``, ``confusion``, ``fig3c_utilisation``, ``fig5_contribution``,
        ``fig6a_conflict``, ``fig6b_experts``; those without data are left out.

        Args:
            predictions: predictions of the split.
            report: what ``evaluate_split`` says of them.
            folder: folder of the run; its ``log.jsonl`` holds the gradient conflict so far.
        """
        # only the rank that draws pays for matplotlib
        from m4oe_ds.analysis import figures
        from m4oe_ds.report import figures as report_figures

        arrays = predictions.arrays()
        classify = {task.name for task in self.spec.tasks if task.coded}
        split = {**report, "tasks": {name: entry for name, entry in report["tasks"].items() if name in classify}}
        made: dict[str, Any] = {}
        if any(entry.get("confusion") for entry in split["tasks"].values()):
            made["confusion"] = report_figures.confusions(split)
        made["roc"] = report_figures.roc(arrays, split)
        if not self._sums.empty:
            made |= self._routing(predictions.token_share)
        if rows := conflict_rows(folder):
            made["fig6a_conflict"] = figures.conflict({self.name: rows}, {self.name: conflict_pairs(folder)})
        return {name: figure for name, figure in made.items() if figure is not None}

    def _routing(self, token_share: np.ndarray) -> Mapping[str, Any]:
        from m4oe_ds.analysis import figures

        found = self._sums.result()
        tasks, modalities = self.spec.task_names, self.spec.modalities
        panel = {"token_share": token_share, **{key: found[key] for key in ("utilisation_i", "utilisation_ij")}}
        return {
            "fig3c_utilisation": figures.utilisation({self.name: panel}, modalities),
            "fig5_contribution": figures.contribution(found["contribution_ki"], token_share, [], tasks, modalities),
            "fig6b_experts": figures.experts({f"{self.name}\ncombine mass": found["p_expert_given_task_jk"]}, tasks),
        }
