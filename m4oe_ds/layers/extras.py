"""Names of the tensors that a model gives next to its answers (``ModelOutput.extras``).

Models write them; losses, the training step and the analysis read them. They are named on this floor because models and
losses do not import each other. Batch first unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Family:
    """Tensors of one kind, one for each modality or task: ``<kind>.<name>``."""

    kind: str

    def of(self, name: str) -> str:
        """Key of the tensor of one modality or task."""
        return f"{self.kind}.{name}"

    def write(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by modality or task, under their keys."""
        return {self.of(name): value for name, value in values.items()}

    def read(self, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of this kind among ``extras``, by modality or task."""
        prefix = self.of("")
        return {key.removeprefix(prefix): value for key, value in extras.items() if key.startswith(prefix)}


# by modality
FEATURES = Family("features")  # what enters the fusion: [B, C, h, w]
HEATMAP = Family("heatmap")  # of the differences between two breasts: [B, h', w']
WINDOW = Family("window")  # row and column of its largest value: [B, 2]
BOX = Family("box")  # top, left, height and width of that window as shares of the view: [B, 4]
# by task
SHARED = Family("shared")  # what the shared layer gives, of no other parent than that layer: [B, d]
EVIDENCE = Family("evidence")  # of every source: [B, S, 4, C] Normal-Inverse-Gamma or [B, S, C] Dirichlet parameters
UNCERTAINTY = Family("uncertainty")  # of the fused evidence: [B]
ORDINAL = Family("ordinal")  # cumulative logits: [B, K-1]
STEP_LOGITS = Family("step_logits")  # answers after every step: [m+1, B, C]

SOURCES = "sources"  # which sources of evidence are present: [B, S] bool
STEPS = "steps"  # which steps were taken: [m+1, B] bool
STEP_ORDER = "step_order"  # modality of each step: [m]
STATES = "states"  # after every step: [m+1, B, S]
VIEW_WEIGHTS = "view_weights"  # of the adaptive fusion: [B, m]
HAZARD_LOGITS = "hazard_logits"  # of the cumulative risks: [B, F]
CROP = "crop"  # centre (x, y from -1 to 1) and side (share of the image) of the cropped part: [B, 3]
ASYMMETRY = "asymmetry"  # largest difference between two breasts: [B, m]
SCORE_LOGITS = "score_logits"  # of the risk horizons, from the asymmetry: [B, F]
CODES = "codes"  # of the modalities, private ones, then shared ones: [B, 2m, d/2]
