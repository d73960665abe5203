"""The figures of ``m4oe analyze`` in the report: which there are, their titles, and what to read in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m4oe_ds.report.pictures import picture
from m4oe_ds.report.words import NAMES, Words
from m4oe_ds.runs.folder import RunFolder

# file in figures/ (a pattern), title, what to read in it; M4oE's figures in the paper's order
ANALYSES = (
    ("fig3a_competition_*", "Modality competition (Fig. 3a)",
     "What an encoder of the joint model still knows on its own, by a linear probe, and what the model loses without a "
     "modality."),
    ("fig3bc_utilisation", "Modality utilisation (Fig. 3b, c)",
     "Dispatch mass on the tokens of each modality, by layer and expert. Equal shares of equal token counts mean "
     "little by themselves."),
    ("fig4_synergy", "Synergy of pairs of modalities (Fig. 4)",
     "Bits that two modalities tell together and neither alone, about the model's own answer; next to them their share "
     "of the entropy of that answer, and the null: the 95 % quantile with permuted labels. Values at or below the null "
     "are not evidence."),
    ("fig5_contribution", "Modality contribution (Fig. 5)",
     "Share of every modality in a task's answer by routing mass: of single samples, and over the split."),
    ("fig6a_conflict", "Gradient conflict (Fig. 6a)",
     "Cosines of the tasks' gradients at the last shared layer during training: conflict below -0.01, enhancement "
     "above 0.01."),
    ("fig6b_experts", "Experts and tasks (Fig. 6b)",
     "How much each expert serves each task, by combine weight and by gradient times activation, with sparsity "
     "scores."),
    ("fig7_ablation", "Ablation (Fig. 7)",
     "Results over the number of experts and the weight of the mutual information."),
    ("missing_removed", "When modalities are missing: taken away",
     "The same samples with modalities taken from them at random, never the last one; the mean over the combinations "
     "drawn, with its interval over patients. Dotted: the most frequent class, or chance."),
    ("missing_observed", "When modalities are missing: as they are",
     "Samples by the number of modalities that they have. They may differ in more than that: samples with few "
     "modalities can be other patients."),
    ("own_heatmaps", "Where the two sides differ (AsymMirai)",
     "The samples with the largest differences: heat-map over the image, and the window that the answer is read from."),
    ("interpretability", "How far contributions can be trusted",
     "Agreement of routing contributions, and of saliency and attention rollout, with the planted truth of the "
     "synthetic data and with what happens when a modality is taken away."),
)  # fmt: skip


def embedded(folder: Path, words: Words = NAMES) -> list[dict[str, Any]]:
    """Figures that ``m4oe analyze`` left in the run folder, embedded, in the order of the paper."""
    found = []
    for pattern, title, caption in ANALYSES:
        for path in sorted(RunFolder(folder).figures.glob(f"{pattern}.png")):
            image = picture(path, f"{title}. {caption}", words)
            found.append({"title": title, "caption": caption, "image": image})
    return found
