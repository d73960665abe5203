"""The model card: what was trained on what, what it is for, where its limits are.

All of it read from the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from m4oe_ds.data.cards import Card
from m4oe_ds.data.missing import Presence
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.report.words import Words
from m4oe_ds.runs.result_name import title_of

Entry = tuple[str, str]
INTENDED_USE = (
    "Research on multi-modal multi-task learning: comparing architectures, routing and explanations. There is one "
    "answer per {unit} and question, to be read together with the intervals above."
)
NOT_FOR = (
    "Diagnosis, triage, screening or any other decision about a person. It is not a medical device, and no regulator "
    "has assessed it. Not for data of other devices, populations or modalities than those of its training data without "
    "a new evaluation."
)
PRIVACY = (
    "Neither this page nor the run folder names a person, a date or a source file; rows are keyed by keyed hashes. "
    "Code: Apache-2.0. Data sets have their own agreements."
)
WEAK, MODERATE = 0.4, 0.7  # Spearman coefficients below which an agreement is called weak, or moderate


def card(
    environment: Mapping[str, Any],
    metrics: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    tree: Mapping[str, Any],
    engine: Mapping[str, Any],
    analysis: Mapping[str, Any],
    data: Card | None,
) -> list[Entry]:
    """Headings and texts, in order.

    Args:
        environment: content of ``environment.json``, empty if missing.
        metrics: content of ``metrics.json``, likewise.
        analysis: content of ``analysis.json``, likewise.
        records: records of ``log.jsonl``.
        tree: the configuration as nested mappings, empty if missing.
        engine: content of the DeepSpeed JSON, likewise.
        data: card of the data set, None if missing.
    """
    return [
        ("Model", _model(environment, tree)),
        ("Data", _data(environment, metrics, tree, data)),
        ("Training", _training(environment, records, tree, engine)),
        ("Intended use", INTENDED_USE.format(unit=data.unit if data else "sample")),
        ("Not for", NOT_FOR),
        ("Limits", _limits(environment, metrics, Words(data))),
        ("Explanations", _explanations(analysis)),
        ("Privacy and licence", f"{PRIVACY} {data.notice}".strip() if data else PRIVACY),
    ]


def _model(environment: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    model = tree.get("model") or {}
    name = model.get("name", "m4oe")
    count, experts = environment.get("num_parameters"), environment.get("num_expert_parameters")
    text = f"{name}"
    if count:
        text += f", {count:,} parameters" + (f", {experts:,} of them in experts" if experts else "")
    mtoe = model.get("mtoe") or {}
    if name == "m4oe" and model.get("use_mtoe", True) and mtoe.get("num_experts"):
        text += f"; {mtoe['num_experts']} experts with one slot per task"
    alpha = (tree.get("loss") or {}).get("alpha")
    return text + (f"; mutual-information weight alpha = {alpha:g}." if alpha is not None else ".")


def _data(
    environment: Mapping[str, Any], metrics: Mapping[str, Any], tree: Mapping[str, Any], card: Card | None
) -> str:
    name = environment.get("dataset", "unknown")
    text = f"{name}, synthetic phantoms in its layout" if environment.get("synthetic") else str(name)
    parts = [
        f"{title_of(split, entry)} {entry['n']} samples of {entry['n_groups']} {card.group if card else 'patient'}s"
        for split, entry in metrics.items()
        if isinstance(entry, dict) and "n_groups" in entry
    ]
    text += f". Evaluated on {'; '.join(parts)}" if parts else ""
    if card:
        text += f". One sample is one {card.unit}; splits are disjoint by {card.group}."
        data = tree.get("data") or {}
        modalities = [one for one in card.inputs if not data.get("modalities") or one.name in data["modalities"]]
        tasks = [task for task in card.tasks if not data.get("tasks") or task.name in data["tasks"]]
        views = ", ".join(f"{one.label} ({one.name})" if one.label else one.name for one in modalities)
        text += f" Modalities: {views}. Questions and answers: {'; '.join(map(answer, tasks))}."
    else:
        text += ". The run has no card: what its samples and questions are is not known here."
    if "presence" in environment and (missing := Presence(**environment["presence"]).line()):
        text += f" {missing}."
    if dropout := (tree.get("data") or {}).get("modality_dropout"):
        text += f" In training each modality of a sample was left out with probability {dropout:g}, never all of them."
    digest = environment.get("data_digest")
    return text + (f" Fingerprint of the shards: {digest[:12]}." if digest else "")


def answer(task: TaskSpec) -> str:
    """A question with what its answer can be, in words."""
    kind = {
        "number": f"a number{f' in {task.unit}' if task.unit else ''}",
        "mask": f"mask of {', '.join(task.class_names)}",
    }
    named = f"{task.label} ({task.name})" if task.label else task.name
    return f"{named}: {kind.get(task.kind) or ', '.join(task.class_names)}"


def _training(
    environment: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    tree: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> str:
    parts = [
        *_amount(environment, records, engine),
        *_optimization(engine, tree, records),
        *_provenance(environment),
    ]
    return "; ".join(parts) + "."


def _amount(
    environment: Mapping[str, Any], records: Sequence[Mapping[str, Any]], engine: Mapping[str, Any]
) -> list[str]:
    """How long, from which seed, and on how many samples at a time."""
    parts = []
    steps = [record for record in records if record.get("event", "train") == "train"]
    if steps:
        epochs = steps[-1].get("epoch", 0) + 1
        parts.append(f"{steps[-1]['step']} optimizer steps in {epochs} epoch{'s' if epochs != 1 else ''}")
    if "seed" in environment:
        parts.append(f"seed {environment['seed']}")
    batch = (environment.get("batch") or {}).get("train") or engine.get("train_batch_size")
    if batch:
        parts.append(f"{batch} samples per step")
    return parts


def base_rate(engine: Mapping[str, Any]) -> float | None:
    """Base learning rate of a DeepSpeed JSON; None if it has none."""
    rate = ((engine.get("optimizer") or {}).get("params") or {}).get("lr")
    return float(rate) if isinstance(rate, int | float) else None


def _optimization(
    engine: Mapping[str, Any], tree: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Optimizer with the rates it really had, precision and ZeRO stage."""
    parts = []
    optimizer = engine.get("optimizer") or {}
    if optimizer.get("type"):
        rate = base_rate(engine)
        parts.append(str(optimizer["type"]) + (f", base learning rate {rate:g}" if rate is not None else ""))
        factor = (tree.get("schedule") or {}).get("peak_factor", 1.0)
        if rate is not None and factor != 1:
            parts[-1] += f" times {factor:g} at its peak, so {rate * factor:g}"
        logged = [record["lr"] for record in records if record.get("lr") is not None]
        if logged:
            parts[-1] += f" (highest logged: {max(logged):.3g})"
    precision = next((kind for kind in ("bf16", "fp16") if (engine.get(kind) or {}).get("enabled")), "fp32")
    stage = (engine.get("zero_optimization") or {}).get("stage")
    return [*parts, precision + (f", ZeRO-{stage}" if stage is not None else "")]


def _provenance(environment: Mapping[str, Any]) -> list[str]:
    """Ranks and devices, and the commit of the code."""
    parts = []
    if environment.get("world"):
        shared = f", experts shared by {environment['ep_size']}" if environment.get("ep_size", 1) > 1 else ""
        ranks = "1 rank" if environment["world"] == 1 else f"{environment['world']} ranks"
        parts.append(f"{ranks} on {environment.get('device', '?')}{shared}")
    commit = (environment.get("git") or {}).get("commit")
    if commit:
        changed = " with uncommitted changes" if environment["git"].get("modified") else ""
        parts.append(f"code {commit[:10]}{changed}")
    return parts


def _limits(environment: Mapping[str, Any], metrics: Mapping[str, Any], words: Words) -> str:
    text = (
        "One seed: how much the figures would change with another is not known from this run. Labels may be missing, "
        "and answers about what happens later are censored: a negative counts only as far as follow-up reaches. "
        "Accuracy must be read against the majority baseline."
    )
    below = [
        words.task(name)
        for entry in ([metrics["test"]] if isinstance(metrics.get("test"), dict) else [])
        for name, task in entry.get("tasks", {}).items()
        if task.get("n")
        and task.get("prior") is not None
        and (accuracy := task["metrics"].get("accuracy", {}).get("value")) is not None
        and accuracy <= task["prior"]
    ]
    if below:
        text += f" No better than always answering the most frequent class, by accuracy: {', '.join(below)}."
    if environment.get("synthetic"):
        text += " Trained and evaluated on generated phantoms: nothing here says how it would do on patients."
    return text


def _explanations(analysis: Mapping[str, Any]) -> str:
    general = (
        "Contributions are routing mass: where the experts of a task read. They are not causal importance, and neither "
        "are dispatch maps."
    )
    lines = agreement(analysis)
    return (
        " ".join([general, *lines])
        if lines
        else f"{general} Their agreement with anything was not measured for this run."
    )


def agreement(analysis: Mapping[str, Any]) -> list[str]:
    """What the agreement of routing contributions with the references amounts to, in sentences; empty if unknown."""
    table = (analysis.get("interpretability") or {}).get("table", ())
    named = {
        "truth": "the planted truth of the synthetic data",
        "ablation": "what leaving a modality out does to the answer",
    }
    found = []
    for reference, text in named.items():
        rows = {
            row["explanation"]: row
            for row in table
            if row["reference"] == reference and row["level"] == "sample" and row.get("spearman") is not None
        }
        own = rows.get("routing")
        if own is None:
            continue
        value = own["spearman"]
        strength = "weakly" if value < WEAK else "moderately" if value < MODERATE else "strongly"
        if value <= 0 or (own.get("low") is not None and own["low"] <= 0):
            strength = "not demonstrably"
        span = f" [{own['low']:.2f}, {own['high']:.2f}]" if own.get("low") is not None else ""
        rivals = ", ".join(
            f"{name} {rows[name]['spearman']:.2f}" for name in ("saliency", "rollout", "ablation") if name in rows
        )
        found.append(
            f"Routing contributions agree {strength} with {text}: Spearman coefficient {value:.2f}{span} over samples"
            + (f" (rivals: {rivals})." if rivals else ".")
        )
    return found
