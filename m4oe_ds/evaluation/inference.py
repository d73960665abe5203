"""Every sample of a split exactly once, at any number of ranks: padding leaves no trace, rows are joined by key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import DataError
from m4oe_ds.layers.routing import modality_contribution
from m4oe_ds.losses.discrete_time import cumulative_incidence
from m4oe_ds.losses.objective import Objective, TaskLoss
from m4oe_ds.models.interface import ModelOutput, ModelSpec
from m4oe_ds.parallel import reduce

_KEY_BYTES = 64


@dataclass
class Predictions:
    """One split's answers, rows sorted by key, equal on all ranks.

    Attributes:
        keys: ``[N]`` sample keys.
        groups: ``[N]`` patient pseudonyms.
        labels: ``{task: [N] int64}`` classes, -1 missing; ``[N] float32`` a number in its unit, ``[N, 2] float32``
            time and event of a survival, NaN missing.
        probabilities: ``{task: [N, C] float32}`` of classes.
        dice: ``{task: [N] float32}`` of a mask, ``[N, C]`` of several classes, NaN missing.
        contribution: ``[N, p, m] float32`` modality shares, or None for a model without task-slotted routing.
        token_share: ``[m]`` mean share of each modality in the tokens a sample has: what uniform routing would give.
        losses: mean loss per task over its labelled samples; None without labels.
        examples: views ``[E, m, h, w] uint8``, presence, keys and exams of a few samples, and the kinds of the
            modalities.
        present: ``[N, m]`` bool, which modalities each sample has; None if not known.
        values: ``{task: [N] float32}`` predicted numbers, in their unit.
        risks: ``{task: [N, H] float32}`` P(event within each horizon).
        areas: as ``dice``: the share of the picture that the true mask covers.
    """

    keys: np.ndarray
    groups: np.ndarray
    labels: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    dice: dict[str, np.ndarray]
    contribution: np.ndarray | None
    token_share: np.ndarray
    losses: dict[str, float | None]
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    present: np.ndarray | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)
    risks: dict[str, np.ndarray] = field(default_factory=dict)
    areas: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Sum of the task losses."""
        return sum(value for value in self.losses.values() if value is not None)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the metrics take, by the names of ``predictions/<split>.npz``.

        These are keys and groups, and by task label_*, prob_*, value_*, risk_*, dice_*, area_*.
        """
        return {
            "keys": self.keys,
            "groups": self.groups,
            **{f"label_{name}": value for name, value in self.labels.items()},
            **{f"prob_{name}": value for name, value in self.probabilities.items()},
            **{f"value_{name}": value for name, value in self.values.items()},
            **{f"risk_{name}": value for name, value in self.risks.items()},
            **{f"dice_{name}": value for name, value in self.dice.items()},
            **{f"area_{name}": value for name, value in self.areas.items()},
        }

    def save(self, path: Path, spec: ModelSpec) -> None:
        """Writes ``predictions/<split>.npz`` (arrays only, no pickled objects)."""
        arrays = self.arrays() | {
            "tasks": np.array(spec.task_names),
            "modalities": np.array(spec.modalities),
            "token_share": self.token_share,
        }
        if self.present is not None:
            arrays["present"] = self.present
        if self.contribution is not None:
            arrays["contribution"] = self.contribution
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle

    def save_examples(self, path: Path) -> None:
        """Writes ``predictions/examples.npz``: a few samples' views with their contributions, if the model has any."""
        if not self.examples:
            return
        rows = {key: row for row, key in enumerate(self.keys)}
        chosen = [rows[key] for key in self.examples["keys"]]
        shares = {} if self.contribution is None else {"contribution": self.contribution[chosen]}
        arrays = {**shares, **self.examples}
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle


@torch.no_grad()
def predict_split(
    forward: Callable[[Batch], ModelOutput],
    batches: Iterable[Batch],
    spec: ModelSpec,
    objective: Objective,
    device: torch.device,
    dtype: torch.dtype,
    num_examples: int = 0,
    correction: Mapping[str, Tensor] | None = None,
    observe: Callable[[Batch, ModelOutput], None] | None = None,
    exams: Collection[str] = (),
) -> Predictions:
    """Runs a model over this rank's batches and joins the rows of all ranks.

    Args:
        forward: the engine (or a module) in evaluation mode.
        batches: equal numbers on every rank; padding samples have ``valid`` False.
        objective: objective that gives the losses, and the scale of numbers.
        dtype: dtype of the views.
        num_examples: samples whose views are kept for the report, the first of every rank.
        correction: ``{task: [C]}`` added to the logits (weighted sampling).
        observe: also given every batch of this rank and its output.
        exams: exams whose samples' views are kept instead, all of them.

    Collectives: the engine's own and one all-gather per array; every rank must call it.
    """
    columns: dict[str, list[Tensor]] = {}
    sums = torch.zeros(len(spec.tasks), dtype=torch.float64, device=device)
    counts = torch.zeros_like(sums)
    kept = _Examples(spec, exams, -(-num_examples // reduce.world_size()))
    for host in batches:
        batch = host.to(device, dtype)
        output = forward(batch)
        for name, shift in (correction or {}).items():
            output.logits[name] = output.logits[name] + shift.to(output.logits[name])
        if observe is not None:
            observe(batch, output)
        for k, part in enumerate(objective.task_parts(output, batch).values()):
            sums[k] += part.sum.double()
            counts[k] += part.count.double()
        kept.add(batch)
        for name, value in _rows(output, batch, spec, objective).items():
            columns.setdefault(name, []).append(value)
    if not columns:
        raise DataError("no batches to evaluate", fix="check that the split has samples")
    joined = {name: reduce.gather_rows(torch.cat(values)).cpu().numpy() for name, values in columns.items()}
    losses = reduce.sum_over_ranks(torch.stack([sums, counts])).cpu().numpy()
    return _assemble(joined, losses, spec, kept.joined(device, 0 if exams else num_examples))


def _rows(output: ModelOutput, batch: Batch, spec: ModelSpec, objective: Objective) -> dict[str, Tensor]:
    """One row per sample of everything that is kept."""
    device = batch.valid.device
    rows = {
        "valid": batch.valid,
        "key": _encode(batch.keys).to(device),
        "group": _encode(batch.groups).to(device),
        "present": batch.present,
    }
    tokens = torch.ones(len(spec.modalities), device=device)
    if output.modality_of_token is not None:
        tokens = torch.bincount(output.modality_of_token, minlength=len(spec.modalities)).float()
    rows["token_share"] = functional.normalize(batch.present * tokens, p=1.0, dim=1)  # absent modalities have no tokens
    for k, task in enumerate(spec.tasks):
        logits, mask = output.logits[task.name].float(), batch.label_mask[:, k]
        rows.update(_answers(task, logits, batch.labels[task.name], mask, objective.losses[task.name]))
    routing = output.routing.get("mtoe")
    if routing is not None and output.modality_of_token is not None:
        if routing.token_mask is not None:  # what takes part may be more than what is present: a bank of missing tokens
            share = torch.zeros(len(batch), len(spec.modalities), device=device)
            share = share.index_add(1, output.modality_of_token, routing.token_mask.float())
            rows["token_share"] = functional.normalize(share, p=1.0, dim=1)
        rows["contribution"] = modality_contribution(routing, output.modality_of_token, len(spec.modalities)).float()
    return rows


def _answers(task: TaskSpec, logits: Tensor, labels: Tensor, mask: Tensor, loss: TaskLoss) -> dict[str, Tensor]:
    """What is kept of a task's answers and labels, by the names of ``predictions/<split>.npz``."""
    if task.coded:
        known = torch.where(mask, labels, torch.full_like(labels, -1))
        return {f"prob_{task.name}": logits.softmax(-1), f"label_{task.name}": known}
    if task.dense:
        truth = labels > 0.5
        found = {"dice": overlap(logits > 0, truth, 2), "area": truth.flatten(2).float().mean(2)}  # [B, C]
        kept = {f"{what}_{task.name}": _where_known(value, mask) for what, value in found.items()}
        return {name: value[:, 0] if task.num_classes == 1 else value for name, value in kept.items()}
    known = _where_known(labels, mask)
    if task.kind == "survival":
        return {f"risk_{task.name}": cumulative_incidence(logits), f"label_{task.name}": known}
    # in float64: a large centre and a small spread would lose digits otherwise
    value = (logits[:, 0].double() * loss.spread + loss.centre).float()
    return {f"value_{task.name}": value, f"label_{task.name}": known}


def _where_known(value: Tensor, mask: Tensor) -> Tensor:
    """``[B, ...]`` with NaN in the rows where ``mask [B]`` is False."""
    return torch.where(mask.view(-1, *[1] * (value.ndim - 1)), value, torch.full_like(value, float("nan")))


def overlap(predicted: Tensor, truth: Tensor, leading: int = 1) -> Tensor:
    """Dice coefficient of masks ``[B, ...]`` bool (Dice 1945); two empty masks agree: 1.

    Args:
        predicted: masks.
        truth: masks.
        leading: dimensions that the result keeps; the others are those of the picture.
    """
    both = (predicted & truth).flatten(leading).sum(leading).float()
    size = (predicted.flatten(leading).sum(leading) + truth.flatten(leading).sum(leading)).float()
    return torch.where(size > 0, 2 * both / size.clamp_min(1), torch.ones_like(size))


class _Examples:
    """The pictures of a few samples of this rank, on the host: what is kept does not grow with the split.

    Args:
        spec: specification of the model.
        exams: exams whose samples are kept; empty = the first ``count``.
        count: most samples of this rank, without exams.
    """

    def __init__(self, spec: ModelSpec, exams: Collection[str], count: int) -> None:
        self.spec, self.exams, self.count = spec, frozenset(exams), count
        self.rows: dict[str, list[Tensor]] = {}
        self.kept = 0

    def add(self, batch: Batch) -> None:
        """Takes from a batch what is wanted of it."""
        wanted = batch.valid.nonzero().flatten().tolist()
        if self.exams:
            wanted = [b for b in wanted if batch.exams and batch.exams[b] in self.exams]
        else:
            wanted = wanted[: self.count - self.kept]
        if not wanted:
            return
        self.kept += len(wanted)
        rows = {
            "key": _encode(tuple(batch.keys[b] for b in wanted)),
            "exam": _encode(tuple(batch.exams[b] if batch.exams else "" for b in wanted)),
            "present": batch.present[wanted].cpu(),
            "picture": _thumbnails(batch, wanted).cpu(),
        }
        for name, value in rows.items():
            self.rows.setdefault(name, []).append(value)

    def joined(self, device: torch.device, most: int) -> dict[str, np.ndarray]:
        """Those of all ranks in the order of their keys, as ``examples.npz`` names them; empty if there are none.

        Args:
            device: where ranks exchange tensors.
            most: number of samples to keep; 0 = all.

        Collectives: one all-reduce, and all-gathers if any rank has one; every rank must call it.
        """
        sizes = torch.tensor([self.kept, *(self.rows["picture"][0].shape[1:] if self.kept else (0, 0, 0))])
        longest, *shape = reduce.maximum_over_ranks(sizes.to(device)).tolist()
        if not longest:
            return {}
        empty = {
            "key": torch.zeros(0, _KEY_BYTES, dtype=torch.uint8),
            "exam": torch.zeros(0, _KEY_BYTES, dtype=torch.uint8),
            "present": torch.zeros(0, len(self.spec.modalities), dtype=torch.bool),
            "picture": torch.zeros(0, *shape, dtype=torch.uint8),
        }
        found = {}
        for name, nothing in empty.items():
            mine = torch.cat(self.rows.get(name, [nothing]))
            padded = torch.cat([mine, mine.new_zeros(longest - len(mine), *mine.shape[1:])])
            found[name] = reduce.gather_rows(padded.to(device)).cpu().numpy()
        keys = _decode(found["key"])
        order = np.argsort(keys, kind="stable")
        order = order[keys[order] != ""][: most or None]
        return {
            "keys": keys[order],
            "views": found["picture"][order],
            "present": found["present"][order],
            "exams": _decode(found["exam"])[order],
            "kinds": np.array(["image" if one.flat else one.kind for one in self.spec.inputs]),
        }


def _thumbnails(batch: Batch, rows: list[int]) -> Tensor:
    """Views of the chosen samples as ``[E, m, h, w]`` uint8, each stretched to its own range.

    Of a volume the middle slice, at the size of the images if there are any; of a table nothing.
    """
    dimensions = sorted((view.ndim, tuple(view.shape[-2:])) for view in batch.views.values() if view.ndim > 3)
    height, width = dimensions[0][1] if dimensions else (1, 1)
    images = torch.zeros(len(rows), len(batch.modalities), height, width, dtype=torch.uint8, device=batch.valid.device)
    for row, b in enumerate(rows):
        for i, name in enumerate(batch.modalities):
            whole = batch.views[name][b].float()
            if whole.ndim == 2:
                continue
            view = (whole if whole.ndim == 3 else whole[:, whole.shape[1] // 2]).mean(0)
            if tuple(view.shape) != (height, width):
                view = functional.interpolate(view[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
            low, high = view.min(), view.max()
            images[row, i] = ((view - low) / (high - low).clamp_min(1e-6) * 255).to(torch.uint8)
    return images


def _assemble(
    joined: dict[str, np.ndarray], losses: np.ndarray, spec: ModelSpec, examples: dict[str, np.ndarray]
) -> Predictions:
    """Valid rows of all ranks in the order of their keys."""
    keys = _decode(joined["key"])
    valid = np.flatnonzero(joined["valid"])
    order = valid[np.argsort(keys[valid], kind="stable")]
    keys = keys[order]
    if len(np.unique(keys)) != len(keys):
        raise DataError("a sample was evaluated twice", fix="this is a bug in the stream; please report it")
    by_task = {
        what: {
            task.name: joined[f"{what}_{task.name}"][order] for task in spec.tasks if f"{what}_{task.name}" in joined
        }
        for what in ("label", "prob", "value", "risk", "dice", "area")
    }
    return Predictions(
        keys=keys,
        groups=_decode(joined["group"])[order],
        labels=by_task["label"],
        probabilities=by_task["prob"],
        dice=by_task["dice"],
        contribution=joined["contribution"][order] if "contribution" in joined else None,
        token_share=joined["token_share"][order].mean(0),
        present=joined["present"][order],
        losses={
            task.name: float(losses[0, k] / losses[1, k]) if losses[1, k] > 0 else None
            for k, task in enumerate(spec.tasks)
        },
        examples=examples,
        values=by_task["value"],
        risks=by_task["risk"],
        areas=by_task["area"],
    )


def _encode(texts: tuple[str, ...]) -> Tensor:
    """Texts as ``[B, 64]`` uint8, so that ranks exchange tensors and not pickled objects."""
    rows = np.zeros((len(texts), _KEY_BYTES), dtype=np.uint8)
    for row, text in zip(rows, texts, strict=True):
        data = text.encode("ascii")
        if len(data) > _KEY_BYTES:
            raise DataError(f"sample key of {len(data)} characters; at most {_KEY_BYTES} are supported")
        row[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return torch.from_numpy(rows)


def _decode(rows: np.ndarray) -> np.ndarray:
    return np.array([bytes(row).rstrip(b"\0").decode("ascii") for row in rows])
