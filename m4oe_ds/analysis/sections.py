"""The sections of ``m4oe analyze``: each turns what was collected into a part of ``analysis.json`` and its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m4oe_ds.analysis import figures
from m4oe_ds.analysis import interpretability as checks
from m4oe_ds.analysis.collect import Features, collect_features
from m4oe_ds.analysis.conflict import conflict_pairs, conflict_rows
from m4oe_ds.analysis.gallery import GalleryCollector, save
from m4oe_ds.analysis.inputs import sweep_rows, twin_folders
from m4oe_ds.analysis.missing_section import missing
from m4oe_ds.analysis.model_outputs import own_outputs
from m4oe_ds.analysis.probes import competition, masked_probabilities
from m4oe_ds.analysis.session import FEATURE_ROWS, Session, Skip, headline, tracked
from m4oe_ds.analysis.synergy_section import synergy
from m4oe_ds.analysis.truth import truth_of
from m4oe_ds.data.cards import Card, find_card, shipped
from m4oe_ds.data.schema import short_key
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.evaluation.clinical import write_report
from m4oe_ds.runs import assemble
from m4oe_ds.runs.finished import Run, open_run
from m4oe_ds.runs.folder import RunFolder, plain
from m4oe_ds.stored import read_arrays


def save_rows(session: Session) -> None:
    """Shares of every sample, as arrays."""
    found, spec = session.split, session.run.spec
    arrays: dict[str, Any] = {
        "keys": found.keys,
        "present": found.present,
        "tasks": np.array(spec.task_names),
        "modalities": np.array(spec.modalities),
        "token_share": found.token_share,
        "saliency": found.saliency,
        "divergence": found.divergence,
        "loss_increase": found.loss_increase,
    }
    arrays |= {name: value for name in ("contribution", "rollout") if (value := getattr(found, name)) is not None}
    path = RunFolder(session.run.folder).analysis_arrays(session.options.split)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def write_gallery(run: Run, split: str, limit: int) -> dict[str, Any]:
    """Writes ``analysis/gallery.npz``: maps of a few samples, and the patches that every expert takes most of.

    Raises:
        DataError: a model without task-slotted routing or without a grid of image tokens.
    """
    count = run.config.evaluation.num_examples or 6
    collector = GalleryCollector(run.model, run.spec, count, keys=None if limit else samples_shown(run.folder, split))
    with torch.no_grad():
        for host in tracked(run, split, limit, "gallery"):
            batch = host.to(run.device)
            collector.add(batch, run.model(batch))
    path = RunFolder(run.folder).analysis_arrays("gallery")
    arrays = collector.result()
    save(arrays, path)
    return {"samples": len(arrays["keys"]), "experts": len(arrays["expert_usage"]), "file": f"analysis/{path.name}"}


def samples_shown(folder: Path, split: str) -> list[str] | None:
    """Keys of the samples that the report shows, if they are of this split: their maps belong next to them."""
    examples, predictions = RunFolder(folder).examples, RunFolder(folder).predictions(split)
    if not (examples.is_file() and predictions.is_file()):
        return None
    kept, known = (read_arrays(path, "make it with `m4oe evaluate`", ("keys",)) for path in (examples, predictions))
    keys: list[str] = kept["keys"].tolist()
    return keys if set(keys) <= set(known["keys"].tolist()) else None


def write_clinical(run: Run, split: str, resamples: int) -> dict[str, Any]:
    """Writes ``clinical.json``: calibration, operating points, follow-up, subgroups.

    Raises:
        DataError: the split has no stored predictions.
    """
    train = assemble.load_manifests(run.config, ("train",))["train"]
    labels = {f"label_{task.name}": train.sample_labels(task.name) for task in run.spec.tasks if task.coded}
    files, tasks = RunFolder(run.folder), run.spec.tasks
    own, tuning = files.predictions(split), files.predictions("val")
    write_report(files.clinical, own, tuning, split, run.config.data.root, tasks, resamples, labels, train.card)
    lacking = subgroups_lacking(train.card)
    return {"split": split, "file": files.clinical.name, "subgroups_not_in_shards": lacking}


def subgroups_lacking(stored: Card) -> list[str]:
    """Subgroups of the shipped card of that name that shards, made with an earlier one, cannot have."""
    if stored.name not in shipped() or stored.source is None or not stored.source.reader:
        return []
    wanted = find_card(stored.name).source
    return [name for name in (wanted.subgroups if wanted else {}) if name not in stored.source.subgroups]


def facts_of(session: Session) -> dict[str, Any]:
    """What was analysed."""
    run = session.run
    facts: dict[str, Any] = {
        "model": session.name,
        "split": session.options.split,
        "limit": session.options.limit,
        "modalities": list(run.spec.modalities),
        "tasks": list(run.spec.task_names),
        "synthetic": bool(run.data.synthetic),
    }
    if session.collected is not None:
        facts |= {"samples": session.split.samples, "patients": len(set(session.split.groups.tolist()))}
    return facts


def _utilisation(session: Session) -> dict[str, Any]:
    found = session.split.routing
    if found is None:
        raise Skip("the model has no mixture layer in which modalities meet")
    names = session.run.spec.modalities
    keep = (
        "layer",
        "slots",
        "utilisation_i",
        "utilisation_ij",
        "utilisation_entropy",
        "utilisation_largest",
        "information_k",
    )
    result = plain({key: found[key] for key in keep} | {"token_share": session.split.uniform})
    if found["tasks"]:
        result["by_task"] = dict(zip(found["tasks"], plain(found["utilisation_ik"].T), strict=True))
    panels = session.panels("utilisation", result)
    rows = [
        {"model": model, "modality": name, "share": panel["utilisation_i"][i], "uniform": panel["token_share"][i]}
        | {f"expert_{j}": value for j, value in enumerate(panel["utilisation_ij"][i])}
        for model, panel in panels.items()
        for i, name in enumerate(names)
    ]
    session.draw(figures.utilisation(panels, session.words.modalities(names)), rows, "fig3bc_utilisation")
    return dict(result)


def _contribution(session: Session) -> dict[str, Any]:
    found = session.split
    if found.contribution is None or found.routing is None:
        raise Skip("the model has no mixture layer in which modalities meet")
    spec = session.run.spec
    tasks = found.routing["tasks"] or spec.task_names
    columns = [spec.task_names.index(name) for name in tasks]
    population = np.broadcast_to(found.routing["contribution_ki"], (len(tasks), len(spec.modalities)))
    patients = [
        {"title": title, "contribution": found.contribution[row][columns]}
        for title, row in _two_samples(session).items()
    ]
    uniform = found.uniform
    rows = [
        {"sample": title, "task": task} | dict(zip(spec.modalities, values, strict=True))
        for title, table in [*((p["title"], p["contribution"]) for p in patients), ("population", population)]
        for task, values in zip(tasks, np.asarray(table).tolist(), strict=True)
    ]
    words = session.words
    figure = figures.contribution(population, uniform, patients, words.tasks(tasks), words.modalities(spec.modalities))
    session.draw(figure, rows, "fig5_contribution")
    return {
        "layer": found.routing["layer"],
        "slots": found.routing["slots"],
        "population": {task: population[k] for k, task in enumerate(tasks)},
        "labelled": found.routing["labelled_k"],
        "uniform": uniform,
        "caveat": "routing mass is not causal importance; see interpretability",
    }


def _two_samples(session: Session) -> dict[str, int]:
    """Rows of two samples with every modality, by title: those of the report, under its names, if it shows two."""
    found = session.split
    whole = np.flatnonzero(found.present.all(1))
    shown = samples_shown(session.run.folder, session.options.split) or []
    row_of = dict(zip(found.keys[whole].tolist(), whole.tolist(), strict=True))
    named = {f"sample {number}, {short_key(key)}": row_of[key] for number, key in enumerate(shown, 1) if key in row_of}
    if len(named) < 2:
        named = {f"sample {short_key(key)}": row for key, row in row_of.items()}
    return dict(list(named.items())[:2])


def _experts(session: Session) -> dict[str, Any]:
    routing, gradient = session.split.routing, session.split.experts
    if routing is None or gradient is None:
        raise Skip("no mixture layer in which modalities meet, or no labels")
    tasks = session.run.spec.task_names
    own = {"layer": routing["layer"], "gradient_activation": plain(gradient)}
    if routing["tasks"]:
        keys = ("p_expert_given_task_jk", "sparsity_entropy_k", "sparsity_hoyer_k", "sparsity_gini_k")
        own["combine"] = plain({key: routing[key] for key in (*keys, "task_divergence_bits", "tasks")})
    panels, notes, rows = {}, {}, []
    for model, entry in session.panels("experts", own).items():
        for measure, label in (("combine", "combine mass"), ("gradient_activation", "gradient x activation")):
            if measure not in entry or len(entry[measure]["tasks"]) != len(tasks):
                continue
            found = entry[measure]
            title, table = f"{model}\n{label}", found["p_expert_given_task_jk"]
            panels[title] = table
            notes[title] = _sparsity_note(found)
            rows += [
                {"model": model, "measure": measure, "row": f"expert {j}"} | dict(zip(tasks, line, strict=True))
                for j, line in enumerate(table)
            ]
            rows += [
                {"model": model, "measure": measure, "row": name}
                | dict(zip(tasks, found[f"sparsity_{name}_k"], strict=True))
                for name in ("entropy", "hoyer", "gini")
            ]
    session.draw(figures.experts(panels, session.words.tasks(tasks), notes), rows, "fig6b_experts")
    return own


def _sparsity_note(found: dict[str, Any]) -> str:
    """Sparsity scores, averaged over the tasks, as the figure shows them."""

    def mean(name: str) -> str:
        known = [value for value in found[f"sparsity_{name}_k"] if value is not None]
        return f"{np.mean(known):.2f}" if known else "-"

    between = found["task_divergence_bits"]
    between = "-" if between is None else f"{between:.2f} bits"
    return f"mean: entropy {mean('entropy')}, Hoyer {mean('hoyer')}, Gini {mean('gini')}\nbetween tasks {between}"


def _competition(session: Session) -> list[dict[str, Any]]:
    assert session.train is not None
    run, options = session.run, session.options
    masked = {
        name: masked_probabilities(
            run.model,
            tracked(run, options.split, options.limit, f"all but {name} at their mean"),
            session.train.means,
            name,
            run.device,
            session.split.features.keys,
        )
        for name in (run.spec.modalities if len(run.spec.modalities) > 1 else ())
    }
    rows = competition(
        run.spec.tasks, session.train, session.split.features, masked, _twins(session), options.resamples
    )
    if not rows:
        raise Skip("no task with labels of two classes")
    flat = [
        {
            "task": row["task"],
            "modality": row["modality"],
            "protocol": row["protocol"],
            "model": side,
            "n": row[side].get("n", ""),
            **row[side].get("auroc", row[side] if side == "drop" else {}),
        }
        for row in rows
        for side in ("multimodal", "unimodal", "drop")
        if side in row
    ]
    drawn = [task.name for task in run.spec.tasks if any(row["task"] == task.name for row in rows)]
    for task in [name for name in headline(session) if name in drawn] or drawn[:1]:
        session.draw(
            figures.competition(rows, run.spec.modalities, task, session.words),
            [row for row in flat if row["task"] == task],
            f"fig3a_competition_{task}",
        )
    return rows


def _twins(session: Session) -> dict[str, tuple[Features, Features]]:
    """Features of the models trained on one modality alone."""
    run, options = session.run, session.options
    found = {}
    for name, folder in twin_folders(options.unimodal, run.spec.modalities).items():
        twin = open_run(folder, options.split, options.data or run.config.data.root, train=True)
        if twin.spec.modalities != (name,):
            raise ConfigError(
                f"{folder} was trained on {', '.join(twin.spec.modalities)}",
                "--unimodal",
                f"train one with --set data.modalities=[{name}]",
            )
        limit = options.limit or FEATURE_ROWS
        found[name] = (
            collect_features(twin.model, tracked(twin, "train", limit, f"{name} alone"), (), twin.device),
            collect_features(twin.model, tracked(twin, options.split, limit, f"{name} alone"), (), twin.device),
        )
    return found


def _conflict(session: Session) -> dict[str, Any]:
    folder = session.run.folder
    rows = conflict_rows(folder)
    if not rows:
        raise Skip("training measured no gradient conflict; train with --set run.conflict_every_steps=10")
    pair = headline(session)
    own = {
        "all_pairs": rows,
        "headline": {"tasks": list(pair), "rows": conflict_rows(folder, pair) if len(pair) == 2 else []},
        "by_pair": plain(conflict_pairs(folder)),
    }
    entries = session.panels("conflict", own)
    panels = {model: entry["all_pairs"] for model, entry in entries.items()}
    pairs = {model: entry["by_pair"] for model, entry in entries.items() if "by_pair" in entry}
    flat = [{"model": model} | row for model, part in panels.items() for row in part]
    session.draw(figures.conflict(panels, pairs, session.words), flat, "fig6a_conflict")
    return own


def _sweep(session: Session) -> list[dict[str, Any]]:
    if session.options.sweep is None:
        raise Skip("no sweep given; name the sweep.csv of `m4oe compare --sweep` with --sweep")
    rows = sweep_rows(session.options.sweep, session.options.metric)
    session.draw(figures.sweeps(rows, session.options.metric), rows, "fig7_ablation")
    return rows


def _interpretability(session: Session) -> dict[str, Any]:
    found, run, options = session.split, session.run, session.options
    names, tasks, root = run.spec.modalities, run.spec.task_names, run.config.data.root
    if len(names) < 2:
        raise Skip("one modality explains everything")
    effect = np.stack([checks.normalised(found.divergence[:, k], found.present) for k in range(len(tasks))], 1)
    uniform = np.broadcast_to(found.token_share[:, None], effect.shape)
    rivals = {"routing": found.contribution, "saliency": found.saliency, "rollout": found.rollout}
    explanations = {name: value for name, value in rivals.items() if value is not None}
    explanations |= {"ablation": effect, "uniform": uniform}
    references = {"ablation": effect}
    files = truth_of(root, options.truth, options.mapping)
    if files is not None:
        truth = checks.read_truth(*files, found.keys, tasks, names, found.present)
        references = {"truth": truth, **references}
    scores = checks.verify(explanations, references, found.present, tasks, found.groups, options.resamples)
    rows = [
        {"reference": reference, "explanation": name, "level": level}
        | (entry[level]["all"] if level != "population" else entry[level])
        for reference, by_name in scores.items()
        for name, entry in by_name.items()
        for level in ("sample", "within", "population")
    ]
    session.draw(figures.interpretability(rows), rows, "interpretability")
    return {"truth": None if files is None else files[0].name, "scores": scores, "table": rows}


def agreement_lines(result: dict[str, Any]) -> list[str]:
    """The sample-level agreement of every explanation as lines of text."""
    return [
        f"  {row['explanation']:9} against {row['reference']}: Spearman {row['spearman']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}] over samples"
        for row in result["table"]
        if row["level"] == "sample" and row["spearman"] is not None and row["low"] is not None
    ]


def _gallery(session: Session) -> dict[str, Any]:
    """Dispatch maps and expert gallery."""
    try:
        return write_gallery(session.run, session.options.split, session.options.limit)
    except DataError as error:
        raise Skip(str(error)) from None


def _clinical(session: Session) -> dict[str, Any]:
    """Clinical figures of the whole split, from its stored predictions."""
    try:
        return write_clinical(session.run, session.options.split, session.options.resamples)
    except DataError as error:
        raise Skip(str(error)) from None


WORK: dict[str, Callable[[Session], Any]] = {
    "utilisation": _utilisation,
    "contribution": _contribution,
    "experts": _experts,
    "competition": _competition,
    "synergy": synergy,
    "conflict": _conflict,
    "sweep": _sweep,
    "interpretability": _interpretability,
    "missing": missing,
    "gallery": _gallery,
    "own": own_outputs,
    "clinical": _clinical,
}
