# ruff: noqa: T201
"""``m4oe diff``: two runs beside each other, as text, and as a page with figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m4oe_ds.arguments import MOST_DRAWS, whole

if TYPE_CHECKING:
    from m4oe_ds.diff.answers import Answers
    from m4oe_ds.diff.settings import Difference
    from m4oe_ds.diff.sides import Side

WIDEST = 48  # letters of a value in the text; the page has it whole
_HOW = (
    "B - A with its 95 % interval, patients resampled together for both; p is two-sided and not corrected for the "
    "number of comparisons, and blind to how trainings with other seeds would differ"
)


@dataclass
class Part:
    """A part of the text and of the page.

    Attributes:
        title: its heading.
        lines: sentences.
        rows: a table, the first row being its heading; empty = none.
        images: SVG files by what they show.
    """

    title: str
    lines: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """As it is printed."""
        widths = [max(len(_cut(cell)) for cell in column) for column in zip(*self.rows, strict=True)]
        table = [
            "  " + "  ".join(_cut(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in self.rows
        ]
        return "\n".join([self.title, *(f"  {line}" for line in self.lines), *table])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    parser.add_argument("first", metavar="RUN_A", help="run folder")
    parser.add_argument("second", metavar="RUN_B", help="another one, which is compared with the first")
    parser.add_argument(
        "--split",
        default="test",
        metavar="NAME",
        help="split whose predictions are compared, or test@NAME of `m4oe evaluate --data` (default: test)",
    )
    parser.add_argument(
        "--resamples",
        type=whole(1, MOST_DRAWS),
        default=1000,
        metavar="N",
        help="bootstrap resamples of patients (default: 1000)",
    )
    parser.add_argument(
        "--output", default="", metavar="DIR", help="folder to write diff.html, diff.json, figures and their numbers to"
    )


def main(options: argparse.Namespace) -> int:
    """Compares and prints; 1 if no answer could be compared.

    Raises:
        UserError: not two run folders, damaged files, or an output that cannot be written.
    """
    from m4oe_ds.command_line import check_output
    from m4oe_ds.diff.sides import open_both
    from m4oe_ds.runs.apart import check_apart

    first, second = open_both(Path(options.first), Path(options.second))
    if options.output:
        check_output(Path(options.output), "--output")
        check_apart(Path(options.output), "--output")

    from m4oe_ds.diff import answers
    from m4oe_ds.diff.settings import differences

    changed = differences(first, second)
    found = answers.compare(first, second, options.split, options.resamples)
    folder = Path(options.output) if options.output else None
    parts = [_settings(changed), _curves(first, second, folder), _answers(found, first, second, folder)]
    print(f"A: {first.path}\nB: {second.path}\n")
    print("\n\n".join(part.text() for part in parts))
    if folder is not None:
        _write(folder, first, second, parts, changed, found)
        print(f"\ncompared: {folder / 'diff.html'}, diff.json, curves.csv next to it")
    return 0 if found.rows else 1


def _settings(changed: Sequence[Difference]) -> Part:
    part = Part("What they were made from", [f"{len(changed)} keys differ" if changed else "nothing differs"])
    if changed:
        part.rows = [["", "key", "A", "B"], *([one.source, one.key, one.first, one.second] for one in changed)]
    return part


def _curves(first: Side, second: Side, folder: Path | None) -> Part:
    from m4oe_ds.diff import curves

    part = Part("How they learned", curves.notes(first, second), curves.table(first, second))
    if not part.rows:
        part.lines = ["neither has a log.jsonl with steps"]
    elif folder is not None:
        from m4oe_ds.report.figures import save

        save(curves.losses(first, second), folder, "curves", curves.numbers(first, second))
        part.images["losses over the optimizer steps"] = str(folder / "curves.svg")
    return part


def _answers(found: Answers, first: Side, second: Side, folder: Path | None) -> Part:
    part = Part(f"What they answer on {found.split}")
    if found.samples:
        part.lines = [
            f"{found.samples} samples of {found.groups} {first.card.group}s that both predicted; "
            f"{found.only_first} of A alone and {found.only_second} of B alone are left out",
            _HOW,
        ]
    digests = [side.data_digest(found.split) for side in (first, second)]
    if all(digests) and digests[0] != digests[1]:
        both = " and ".join(digest[:12] for digest in digests)
        part.lines.append(f"A and B answered different shards (digests {both})")
    part.lines += [f"not compared: {name}: {reason}" for name, reason in found.left_out.items()]
    if found.rows:
        heading = ["task", "metric", "n", "A", "B", "B - A", "95 % interval", "p"]
        part.rows = [heading, *([task, row.metric, str(row.n), *_numbers(row)] for task, row in found.rows)]
        if folder is not None and (figure := _rocs(found, first, second)) is not None:
            from m4oe_ds.report.figures import save

            save(figure, folder, "roc")
            part.images["ROC curves of both runs on the shared samples"] = str(folder / "roc.svg")
    return part


def _rocs(found: Answers, first: Side, second: Side) -> Any:
    from m4oe_ds.diff import curves

    return curves.rocs(found, (f"A: {first.path.name}", f"B: {second.path.name}"))


def _numbers(row: Any) -> list[str]:
    """A, B, difference, interval and p of a row, whose first system is B."""
    interval = "" if row.low is None or row.high is None else f"[{row.low:+.3f}, {row.high:+.3f}]"
    if row.difference is None:
        interval = row.reason
    shown = ["–" if value is None else f"{value:.3f}" for value in (row.second, row.first)]
    return [
        *shown,
        "–" if row.difference is None else f"{row.difference:+.3f}",
        interval,
        "–" if row.p is None else f"{row.p:.3f}",
    ]


def _write(
    folder: Path, first: Side, second: Side, parts: Sequence[Part], changed: Sequence[Difference], found: Answers
) -> None:
    from m4oe_ds.report import page
    from m4oe_ds.runs.folder import plain, write_json

    folder.mkdir(parents=True, exist_ok=True)
    synthetic = any(bool(side.environment.get("synthetic")) for side in (first, second))
    write_json(
        folder / "diff.json",
        {
            "first": str(first.path),
            "second": str(second.path),
            "synthetic": synthetic,
            "differences": [asdict(one) for one in changed],
            "split": found.split,
            "samples": found.samples,
            "answers": [
                {"task": task, **plain(row.as_dict()), "first": row.second, "second": row.first}
                for task, row in found.rows
            ],
            "not_compared": found.left_out,
        },
    )
    title = f"{first.path.name} (A) and {second.path.name} (B)"
    shown = [
        page.Part(
            part.title,
            part.lines,
            rows=part.rows,
            images={name: page.embedded(Path(image)) for name, image in part.images.items()},
        )
        for part in parts
    ]
    page.write(folder / "diff.html", title, synthetic, (), shown)


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 2] + ".."
