"""Tables of ``clinical.json`` and figures of ``analysis.json`` as the report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Table = dict[str, Any]
# file in figures/ (a pattern), title, what to read in it; M4oE's figures in the paper's order
ANALYSES = (
    ("fig3a_competition_*", "Modality competition (Fig. 3a)",
     "What an encoder of the joint model still knows on its own, by a linear probe, and what the model loses without a modality."),
    ("fig3bc_utilisation", "Modality utilisation (Fig. 3b, c)",
     "Dispatch mass on the tokens of each modality, by layer and expert. Equal shares of equal token counts mean little by themselves."),
    ("fig4_synergy", "Synergy of pairs of modalities (Fig. 4)",
     "Bits that two modalities tell together and neither alone, about the model's own answer; beside them their share of the entropy "
     "of that answer, and the null: the 95 % quantile with permuted labels. Values at or below the null are no evidence."),
    ("fig5_contribution", "Modality contribution (Fig. 5)",
     "Share of every modality in a task's answer by routing mass: of single samples, and over the split."),
    ("fig6a_conflict", "Gradient conflict (Fig. 6a)",
     "Cosines of the tasks' gradients at the last shared layer during training: conflict below -0.01, enhancement above 0.01."),
    ("fig6b_experts", "Experts and tasks (Fig. 6b)",
     "How much each expert serves each task, by combine weight and by gradient times activation, with sparsity scores."),
    ("fig7_ablation", "Ablation (Fig. 7)", "Results over the number of experts and the weight of the mutual information."),
    ("own_heatmaps", "Where the two sides differ (AsymMirai)",
     "The samples with the largest differences: heat-map over the view, and the window that the risk is read from."),
    ("interpretability", "How far contributions can be trusted",
     "Agreement of routing contributions, and of saliency and attention rollout, with the planted truth of the synthetic data and with "
     "what happens when a modality is taken away."),
)  # fmt: skip


def number(entry: Mapping[str, Any] | None, digits: int = 3) -> str:
    """``0.812 [0.74, 0.88]``; a dash where there is no value, with the reason where there is one."""
    if not entry or entry.get("value") is None:
        reason = (entry or {}).get("reason", "")
        return f"– ({reason})" if reason else "–"
    text = f"{entry['value']:.{digits}f}"
    if entry.get("low") is None or entry.get("high") is None:
        return text
    return f"{text} [{entry['low']:.2f}, {entry['high']:.2f}]"


def clinical_tables(clinical: Mapping[str, Any]) -> list[Table]:
    """Tables with ``title``, ``note``, ``header`` and ``rows`` of texts, those without content left out."""
    found = [_points(clinical), _calibration(clinical), _risk(clinical), _subgroups(clinical)]
    return [table for table in found if table["rows"] or table["note"]]


def _points(clinical: Mapping[str, Any]) -> Table:
    rows = []
    for task, entry in clinical["tasks"].items():
        for point in entry.get("operating_points", ()):
            fixed = f"{point['target']} {clinical['rate']:.0%}"
            if point["threshold"] is None:
                rows.append([task, fixed, point["chosen_on"], "–", point["reason"], "", "", ""])
                continue
            rates = [number(point[name]) for name in ("sensitivity", "specificity", "ppv", "npv")]
            rows.append([task, fixed, point["chosen_on"], f"{point['threshold']:.3f}", *rates])
    note = "A threshold chosen on the evaluated data is optimistic; one from the validation split is what a user would have."
    return {"title": "Operating points", "note": note if rows else "", "rows": rows,
            "header": ["task", "fixed", "threshold from", "threshold", "sensitivity", "specificity", "PPV", "NPV"]}  # fmt: skip


def _calibration(clinical: Mapping[str, Any]) -> Table:
    rows = []
    for task, entry in clinical["tasks"].items():
        found = entry.get("calibration")
        if found is None:
            continue
        auroc = entry.get("delong")
        rows.append(
            [task, number(found["ece"]), number(found.get("slope")), number(found.get("intercept")),
             number(found.get("expected_observed")), number(auroc) if auroc else "–"]
        )  # fmt: skip
    note = "ECE of P(y = 1), or of the predicted class where there are more than two; 15 bins of equal counts."
    return {"title": "Calibration", "note": note if rows else "", "rows": rows,
            "header": ["task", "ECE", "slope", "intercept", "expected / observed", "AUROC (DeLong)"]}  # fmt: skip


def _risk(clinical: Mapping[str, Any]) -> Table:
    risk = clinical.get("risk")
    table: Table = {"title": "Risk over time", "note": "", "rows": [],
                    "header": ["horizon", "cases", "AUC (weighted for censoring)", "AUC (plain)", "Brier (censored)"]}  # fmt: skip
    if not risk:
        return table
    if "note" in risk:
        return table | {"note": f"Not available: {risk['note']}."}
    table["note"] = (
        f"Uno's C-index {number(risk['uno_c'])}, Harrell's {number(risk['harrell_c'])}; censoring estimated from "
        f"the {risk['censoring_from'].removeprefix('this ')}; {risk['events']} events among {risk['n']} breasts."
    )
    for entry in risk["horizons"]:
        auc = entry["auc"]
        cases = f"{auc.get('events', '–')} of {auc.get('events', 0) + auc.get('controls', 0)}"
        rows = [
            f"{entry['horizon']} year{'s' if entry['horizon'] > 1 else ''}",
            cases,
            number(auc),
            number(entry["auc_unweighted"]),
            number(entry["brier"]),
        ]
        table["rows"].append(rows)
    return table


def _subgroups(clinical: Mapping[str, Any]) -> Table:
    rows = []
    for task, entry in clinical["tasks"].items():
        for row in entry.get("subgroups", {}).get("rows", ()):
            if row["attribute"] == "all":
                continue
            value = number(row["estimate"]) if row["estimate"] else f"– ({row['reason']})"
            rows.append([task, row["attribute"], row["group"], str(row["n"]), str(row["n_groups"]), value])
    return {"title": "Subgroups", "note": "", "rows": rows,
            "header": ["task", "attribute", "group", "n", "patients", "AUROC"]}  # fmt: skip
