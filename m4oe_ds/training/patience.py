"""Early stopping: validations in a row that did not improve, counted so that a resumed run goes on counting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Patience:
    """How long a run waits for a better validation; counted also where it never stops for it.

    A score that is not defined does not improve, but does not count either before the first one that is.

    Attributes:
        limit: validations without improvement that end the run; 0 = it never ends for that.
        metric: what is validated; a count of another one is worth nothing.
        min_improvement: by how much a score must be smaller than the best one.
        best: the score that the next one has to beat, smaller is better; infinite before the first.
        waited: validations since then.
    """

    limit: int
    metric: str
    min_improvement: float = 0.0
    best: float = math.inf
    waited: int = 0

    def add(self, score: float) -> None:
        """Counts a validation."""
        if math.isfinite(score) and (math.isinf(self.best) or score < self.best - self.min_improvement):
            self.best, self.waited = score, 0
        elif math.isfinite(self.best):
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run is to end."""
        return bool(self.limit) and self.waited >= self.limit

    def note(self) -> str:
        """What is said after a validation; empty where there is nothing to say."""
        return f", no improvement for {self.waited} of {self.limit} validations" if self.limit and self.waited else ""

    def state_dict(self) -> dict[str, Any]:
        """State, ready for JSON."""
        return {"metric": self.metric, "best": None if math.isinf(self.best) else self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Goes on counting; None (of older checkpoints), or a count of another metric, starts again."""
        if state is None or state["metric"] != self.metric:
            return
        self.best = math.inf if state["best"] is None else state["best"]
        self.waited = state["waited"]
