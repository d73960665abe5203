"""The sections of ``m4oe analyze``: each turns what was collected into a part of ``analysis.json`` and its figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from m4oe_ds.analysis import extras, figures
from m4oe_ds.analysis import interpretability as checks
from m4oe_ds.analysis.collect import Collected, Features, collect_features
from m4oe_ds.analysis.pid import principal_components
from m4oe_ds.analysis.pid_batch import BatchSettings
from m4oe_ds.analysis.probes import competition, masked_probabilities
from m4oe_ds.analysis.runs import Run, conflict_rows, open_run, plain, sweep_rows, twin_folders
from m4oe_ds.analysis.synergy import SynergyReport, SynergySettings, synergy_matrices
from m4oe_ds.errors import ConfigError, DataError

FEATURE_ROWS = 4000  # most rows of features kept for probes and synergy
COMPONENTS = 16
MOST_INFORMATION = 1.1  # times H(Y); more is an over-confident network
MIN_MINORITY = 30  # rows outside the majority class that a synergy estimate needs
PAPER_TASKS = ("density", "risk1")


@dataclass
class State:
    """What the sections share."""

    options: argparse.Namespace
    run: Run
    name: str
    baseline: dict[str, Any]
    collected: Collected | None = None
    train: Features | None = None
    result: dict[str, Any] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)

    @property
    def split(self) -> Collected:
        """The pass over the split."""
        assert self.collected is not None
        return self.collected

    def panels(self, section: str, own: Any) -> dict[str, Any]:
        """Own content of a section and, first, that of the baseline, by model name."""
        other = self.baseline.get(section)
        label = str(self.baseline.get("model", "baseline"))
        label = f"{label} (baseline)" if label == self.name else label
        return ({label: other} if other else {}) | {self.name: own}

    def draw(self, figure: Any, rows: list[dict[str, Any]], name: str) -> None:
        """Writes a figure and its numbers to the run folder."""

        self.figures += figures.write(figure, rows, self.run.folder / "figures", name)


class Skip(Exception):
    """A section that this run has no data for; the text says why."""


def save_rows(state: State) -> None:
    """Shares of every sample, as arrays."""
    found, spec = state.split, state.run.spec
    arrays: dict[str, Any] = {
        "keys": found.keys, "present": found.present, "tasks": np.array(spec.task_names),
        "modalities": np.array(spec.modalities), "token_share": found.token_share, "saliency": found.saliency,
        "divergence": found.divergence, "loss_increase": found.loss_increase,
    }  # fmt: skip
    arrays |= {name: value for name in ("contribution", "rollout") if (value := getattr(found, name)) is not None}
    path = state.run.folder / "analysis" / f"{state.options.split}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def facts_of(state: State) -> dict[str, Any]:
    """What was analysed."""
    run = state.run
    facts: dict[str, Any] = {
        "model": state.name,
        "split": state.options.split,
        "limit": state.options.limit,
        "modalities": list(run.spec.modalities),
        "tasks": list(run.spec.task_names),
        "synthetic": bool(run.manifests["train"].synthetic),
    }
    if state.collected is not None:
        facts |= {"samples": len(state.split.keys), "patients": len(set(state.split.groups.tolist()))}
    return facts


def _utilisation(state: State) -> dict[str, Any]:
    found = state.split.routing
    if found is None:
        raise Skip("the model has no mixture layer in which modalities meet")
    names = state.run.spec.modalities
    keep = (
        "layer",
        "slots",
        "utilisation_i",
        "utilisation_ij",
        "utilisation_entropy",
        "utilisation_largest",
        "information_k",
    )
    result = plain({key: found[key] for key in keep} | {"token_share": state.split.token_share.mean(0)})
    if found["tasks"]:
        result["by_task"] = dict(zip(found["tasks"], plain(found["utilisation_ik"].T), strict=True))
    panels = state.panels("utilisation", result)
    rows = [
        {"model": model, "modality": name, "share": panel["utilisation_i"][i], "uniform": panel["token_share"][i]}
        | {f"expert_{j}": value for j, value in enumerate(panel["utilisation_ij"][i])}
        for model, panel in panels.items()
        for i, name in enumerate(names)
    ]
    state.draw(figures.utilisation(panels, names), rows, "fig3bc_utilisation")
    return dict(result)


def _contribution(state: State) -> dict[str, Any]:
    found = state.split
    if found.contribution is None or found.routing is None:
        raise Skip("the model has no mixture layer in which modalities meet")
    spec = state.run.spec
    tasks = found.routing["tasks"] or spec.task_names
    columns = [spec.task_names.index(name) for name in tasks]
    population = np.broadcast_to(found.routing["contribution_ki"], (len(tasks), len(spec.modalities)))
    whole = np.flatnonzero(found.present.all(1))[:2]
    patients = [
        {"title": f"sample {number + 1}", "contribution": found.contribution[row][columns]}
        for number, row in enumerate(whole)
    ]
    uniform = found.token_share.mean(0)
    rows = [
        {"sample": title, "task": task} | dict(zip(spec.modalities, values, strict=True))
        for title, table in [*((p["title"], p["contribution"]) for p in patients), ("population", population)]
        for task, values in zip(tasks, np.asarray(table).tolist(), strict=True)
    ]
    figure = figures.contribution(population, uniform, patients, tasks, spec.modalities)
    state.draw(figure, rows, "fig5_contribution")
    return {
        "layer": found.routing["layer"],
        "slots": found.routing["slots"],
        "population": {task: population[k] for k, task in enumerate(tasks)},
        "labelled": found.routing["labelled_k"],
        "uniform": uniform,
        "caveat": "routing mass is not causal importance; see interpretability",
    }


def _experts(state: State) -> dict[str, Any]:
    routing, gradient = state.split.routing, state.split.experts
    if routing is None or gradient is None:
        raise Skip("no mixture layer in which modalities meet, or no labels")
    tasks = state.run.spec.task_names
    own = {"layer": routing["layer"], "gradient_activation": plain(gradient)}
    if routing["tasks"]:
        keys = ("p_expert_given_task_jk", "sparsity_entropy_k", "sparsity_hoyer_k", "sparsity_gini_k")
        own["combine"] = plain({key: routing[key] for key in (*keys, "task_divergence_bits", "tasks")})
    panels, rows = {}, []
    for model, entry in state.panels("experts", own).items():
        for measure, label in (("combine", "combine mass"), ("gradient_activation", "gradient x activation")):
            if measure not in entry or len(entry[measure]["tasks"]) != len(tasks):
                continue
            table = entry[measure]["p_expert_given_task_jk"]
            panels[f"{model}\n{label}"] = table
            rows += [
                {"model": model, "measure": measure, "expert": j} | dict(zip(tasks, line, strict=True))
                for j, line in enumerate(table)
            ]
    state.draw(figures.experts(panels, tasks), rows, "fig6b_experts")
    return own


def _competition(state: State) -> list[dict[str, Any]]:
    assert state.train is not None
    run, options = state.run, state.options
    masked = {
        name: masked_probabilities(
            run.model, run.batches(options.split, options.limit), state.train.means, name, run.device
        )
        for name in (run.spec.modalities if len(run.spec.modalities) > 1 else ())
    }
    rows = competition(run.spec.tasks, state.train, state.split.features, masked, _twins(state), options.resamples)
    if not rows:
        raise Skip("no task with labels of two classes")
    flat = [
        {
            "task": row["task"], "modality": row["modality"], "protocol": row["protocol"], "model": side,
            "n": row[side].get("n", ""), **row[side].get("auroc", row[side] if side == "drop" else {}),
        }
        for row in rows
        for side in ("multimodal", "unimodal", "drop")
        if side in row
    ]  # fmt: skip
    drawn = [task.name for task in run.spec.tasks if any(row["task"] == task.name for row in rows)]
    for task in [name for name in PAPER_TASKS if name in drawn] or drawn[:1]:
        state.draw(
            figures.competition(rows, run.spec.modalities, task),
            [row for row in flat if row["task"] == task],
            f"fig3a_competition_{task}",
        )
    return rows


def _twins(state: State) -> dict[str, tuple[Features, Features]]:
    """Features of the models trained on one modality alone."""
    run, options = state.run, state.options
    found = {}
    for name, folder in twin_folders(options.unimodal, run.spec.modalities).items():
        twin = open_run(folder, options.split, options.data or run.config.data.root)
        if twin.spec.modalities != (name,):
            raise ConfigError(
                f"{folder} was trained on {', '.join(twin.spec.modalities)}", "--unimodal",
                f"train one with --set data.modalities=[{name}]",
            )  # fmt: skip
        limit = options.limit or FEATURE_ROWS
        found[name] = (
            collect_features(twin.model, twin.batches("train", limit), (), twin.device),
            collect_features(twin.model, twin.batches(options.split, limit), (), twin.device),
        )
    return found


def _synergy(state: State) -> dict[str, Any]:
    assert state.train is not None
    names, test, train = state.run.spec.modalities, state.split.features, state.train
    if len(names) < 2:
        raise Skip("a pair needs two modalities")
    own = state.options.representation == "task"
    parts = [train] if state.options.split == "train" else [train, test]
    present = np.concatenate([part.present for part in parts])
    groups = np.concatenate([part.groups for part in parts])
    settings = SynergySettings(
        batch=BatchSettings(
            permutations=state.options.permutations, discriminator_steps=300, alignment_steps=60, batch_size=128
        )
    )
    report: SynergyReport | None = None
    for task in tqdm(test.task, desc="synergy", unit="task"):
        features = {}
        for i, name in enumerate(names):
            rows = np.concatenate([(part.task[task] if own else part.encoder)[name] for part in parts])
            some = present[:, i].any()
            features[name] = principal_components(rows, present[:, i], COMPONENTS) if some else np.zeros((len(rows), 1))
        predicted = np.concatenate([part.predicted[task] for part in parts])
        there = {name: present[:, i] for i, name in enumerate(names)}
        one = synergy_matrices(features, {task: predicted}, groups, model=state.name, present=there, settings=settings)
        one = _reliable(one, predicted, there)
        report = one if report is None else report.merged(one)
    assert report is not None
    if not report.pairs:
        raise Skip(f"no pair can be estimated: {', '.join(report.skip_counts)}")
    estimated = [task for task in test.task if any(pair.task == task for pair in report.pairs)]
    matrices = {
        task: plain({value: report.matrix(task, value) for value in ("synergy", "null_q95", "redundancy", "total")})
        for task in estimated
    }
    panels = {model: entry.get("matrices", entry) for model, entry in state.panels("synergy", matrices).items()}
    state.draw(figures.synergy(panels, names), report.to_rows(), "fig4_synergy")
    return {
        "target": "the model's predictions", "representation": test.representation if own else "encoder", "splits": len(parts),
        "components": COMPONENTS, "matrices": matrices, "pairs": report.to_rows(),
        "pattern_entropy": {task: report.pattern_entropy(task) for task in estimated},
        "skipped": [list(entry) for entry in report.skipped],
    }  # fmt: skip


def _reliable(report: SynergyReport, predicted: np.ndarray, present: dict[str, np.ndarray]) -> SynergyReport:
    """The report without pairs whose estimate cannot be trusted; they move to ``skipped`` with the reason.

    With a dozen rows outside the majority class a single split decides: an estimate over another split differs by more
    than its interval, and may exceed H(Y) by far (by a little it does wherever the held-out labels are more even).
    """
    kept, dropped = [], []
    for pair in report.pairs:
        labels = predicted[present[pair.modality1] & present[pair.modality2]]
        minority = len(labels) - int(np.bincount(labels).max())
        reason = ""
        if minority < MIN_MINORITY:
            reason = f"fewer than {MIN_MINORITY} rows outside the majority class"
        elif pair.total > MOST_INFORMATION * pair.target_entropy:
            reason = "an estimated information well above H(Y)"
        if reason:
            dropped.append((pair.task, pair.modality1, pair.modality2, reason))
        else:
            kept.append(pair)
    return SynergyReport(report.modalities, tuple(kept), report.skipped + tuple(dropped))


def _conflict(state: State) -> dict[str, Any]:
    folder = state.run.folder
    rows = conflict_rows(folder)
    if not rows:
        raise Skip("training measured no gradient conflict; train with --set run.conflict_every_steps=10")
    own = {"all_pairs": rows, "density_risk1": conflict_rows(folder, ("density", "risk1"))}
    panels = {model: entry["all_pairs"] for model, entry in state.panels("conflict", own).items()}
    flat = [{"model": model} | row for model, part in panels.items() for row in part]
    state.draw(figures.conflict(panels), flat, "fig6a_conflict")
    return own


def _sweep(state: State) -> list[dict[str, Any]]:
    if not state.options.sweep:
        raise Skip("no sweep given; name the sweep.csv of `m4oe compare --sweep` with --sweep")
    rows = sweep_rows(Path(state.options.sweep), state.options.metric)
    state.draw(figures.sweeps(rows, state.options.metric), rows, "fig7_ablation")
    return rows


def _interpretability(state: State) -> dict[str, Any]:
    found, run, options = state.split, state.run, state.options
    names, tasks, root = run.spec.modalities, run.spec.task_names, run.config.data.root
    if len(names) < 2:
        raise Skip("one modality explains everything")
    effect = np.stack([checks.normalised(found.divergence[:, k], found.present) for k in range(len(tasks))], 1)
    uniform = np.broadcast_to(found.token_share[:, None], effect.shape)
    rivals = {"routing": found.contribution, "saliency": found.saliency, "rollout": found.rollout}
    explanations = {name: value for name, value in rivals.items() if value is not None}
    explanations |= {"ablation": effect, "uniform": uniform}
    references = {"ablation": effect}
    path = Path(options.truth) if options.truth else checks.find_truth(root)
    if path is not None:
        mapping = Path(options.mapping) if options.mapping else Path(f"{root}.mapping.csv")
        truth = checks.read_truth(path, mapping, found.keys, tasks, names, found.present)
        references = {"truth": truth, **references}
    scores = checks.verify(explanations, references, found.present, tasks, found.groups, options.resamples)
    rows = [
        {"reference": reference, "explanation": name, "level": level}
        | (entry[level]["all"] if level != "population" else entry[level])
        for reference, by_name in scores.items()
        for name, entry in by_name.items()
        for level in ("sample", "within", "population")
    ]
    state.draw(figures.interpretability(rows), rows, "interpretability")
    return {"truth": None if path is None else path.name, "scores": scores, "table": rows}


def agreement_lines(result: dict[str, Any]) -> list[str]:
    """The sample-level agreement of every explanation as lines of text."""
    return [
        f"  {row['explanation']:9} against {row['reference']}: Spearman {row['spearman']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}] over samples"
        for row in result["table"]
        if row["level"] == "sample" and row["spearman"] is not None and row["low"] is not None
    ]


def _gallery(state: State) -> dict[str, Any]:
    """Dispatch maps and expert gallery."""
    try:
        return extras.gallery(state.run, state.options.split, state.options.limit)
    except DataError as error:
        raise Skip(str(error)) from None


def _clinical(state: State) -> dict[str, Any]:
    """Clinical figures of the whole split, from its stored predictions."""
    try:
        return extras.clinical(state.run, state.options.split, state.options.resamples)
    except DataError as error:
        raise Skip(str(error)) from None


WORK: dict[str, Callable[[State], Any]] = {
    "utilisation": _utilisation,
    "contribution": _contribution,
    "experts": _experts,
    "competition": _competition,
    "synergy": _synergy,
    "conflict": _conflict,
    "sweep": _sweep,
    "interpretability": _interpretability,
    "gallery": _gallery,
    "clinical": _clinical,
}
