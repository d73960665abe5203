"""What the sections of ``m4oe analyze`` share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m4oe_ds.analysis.collect import Collected, Features
from m4oe_ds.analysis.options import AnalysisOptions
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cards import find_card
from m4oe_ds.progress import track
from m4oe_ds.report.figures import save
from m4oe_ds.report.words import Words
from m4oe_ds.runs.finished import Run
from m4oe_ds.runs.folder import RunFolder

FEATURE_ROWS = 4000  # most rows of features kept for probes and synergy


@dataclass
class Session:
    """What the sections share.

    Attributes:
        options: options of the command.
        run: the finished run.
        name: name of the model, for titles.
        baseline: ``analysis.json`` of the run to compare with; empty without one.
        collected: the pass over the split; None if no section needs it.
        train: features of the training split; None if no section needs them.
        result: parts of ``analysis.json`` made so far, by section.
        figures: files drawn so far.
    """

    options: AnalysisOptions
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

    @property
    def words(self) -> Words:
        """What the card calls the modalities and tasks: the words of the figures; files keep the names."""
        return Words(find_card(self.run.config.data.dataset))

    def panels(self, section: str, own: Any) -> dict[str, Any]:
        """Content of a section by model name: first that of the baseline, then that of this run."""
        other = self.baseline.get(section)
        label = str(self.baseline.get("model", "baseline"))
        label = f"{label} (baseline)" if label == self.name else label
        return ({label: other} if other else {}) | {self.name: own}

    def draw(self, figure: Any, rows: list[dict[str, Any]], name: str) -> None:
        """Writes a figure and its numbers to the run folder."""
        folder = RunFolder(self.run.folder).figures
        save(figure, folder, name, rows)
        self.figures.append(folder / f"{name}.png")


def tracked(run: Run, split: str, limit: int, what: str) -> Iterable[Batch]:
    """Batches of a run, with the progress of the pass over them."""
    return track(run.batches(split, limit), f"{what}, {split} split", "batches", run.num_batches(split, limit))


def headline(session: Session) -> tuple[str, ...]:
    """The first two tasks of classes, those of the card's headline before the others: what pairs of tasks are shown."""
    card = find_card(session.run.config.data.dataset)
    known = [task.name for task in session.run.spec.tasks if task.coded]
    first = [name for name in card.headline if name in known]
    return tuple(dict.fromkeys([*first, *known]))[:2]


class Skip(Exception):
    """A section that this run has no data for; the text says why."""
