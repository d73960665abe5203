"""One row per point, measured or simulated, with the same columns; reading and writing them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from m4oe_ds.errors import DataError

DOES_NOT_FIT = "DOES NOT FIT"  # in the source of a simulated point that needs more memory than its devices have


@dataclass(frozen=True)
class StudyRow:
    """A point of a study.

    Attributes:
        experts: number of experts of the MToE.
        ep: ranks that share the experts.
        world: number of ranks.
        mode: ``weak`` (samples per rank fixed) or ``strong`` (samples per step fixed).
        batch: samples per step.
        micro: samples per forward and rank.
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16.
        device: kind of every rank.
        parameters: parameters of the whole model, all experts included.
        step_ms: median over steps of the slowest rank.
        step_ms_low: lower quartile of the same.
        step_ms_high: upper quartile of the same.
        samples_per_s: batch / step.
        memory_bytes: peak of a rank (CPU: growth of the resident set since before the model).
        compute_ms: forward and backward of a step, without collectives; None where the split was not measured. The
            split is measured on rank 0 in further steps that waited for each collective, so it includes waiting for
            slower ranks, and the parts are not those of exactly ``step_ms``.
        all_to_all_ms: exchanges of slots; a collective counts once, here or in ``reduction_ms``, never in the phase
            around it.
        reduction_ms: every other collective.
        optimizer_ms: optimizer, without collectives.
        data_ms: waiting for data.
        all_to_all_bytes: bytes of the all-to-alls that leave a rank per step.
        measured: False = simulated by the plan's model.
        source: date and versions, or the assumptions.
        setting: configuration files and overrides.
        digest: hash of what they say without the varied numbers; points of different digests are not compared with each
            other.
        data: what the point was trained on.
    """

    experts: int
    ep: int
    world: int
    mode: str
    batch: int
    micro: int
    stage: int
    precision: str
    device: str
    parameters: int
    step_ms: float
    step_ms_low: float | None
    step_ms_high: float | None
    samples_per_s: float
    memory_bytes: float
    compute_ms: float | None
    all_to_all_ms: float | None
    reduction_ms: float | None
    optimizer_ms: float | None
    data_ms: float | None
    all_to_all_bytes: float
    measured: bool
    source: str
    setting: str
    digest: str
    data: str

    @property
    def name(self) -> str:
        """File name of the point."""
        return f"e{self.experts}-ep{self.ep}-w{self.world}-{self.mode}-b{self.batch}-{self.digest}"


COLUMNS = tuple(field.name for field in fields(StudyRow))


def write_point(row: StudyRow, folder: Path) -> Path:
    """Writes ``points/<name>.json``."""
    path = folder / "points" / f"{row.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(row), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read_points(folder: Path) -> list[StudyRow]:
    """All points of a study, in order.

    Raises:
        DataError: none there, or one is damaged.
    """
    paths = sorted((folder / "points").glob("*.json"))
    if not paths:
        raise DataError("no points of a study", str(folder / "points"), "run `m4oe scale run` or the SLURM array first")
    rows = []
    for path in paths:
        try:
            rows.append(StudyRow(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"not a point of a study ({error})", str(path), "delete it and measure it again") from None
    return sorted(rows, key=lambda row: (row.mode, row.experts, row.world, row.ep))


def write_left_out(left_out: Iterable[tuple[str, str]], path: Path) -> None:
    """Combinations that cannot be and why, for :func:`read_left_out`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(left_out), indent=2) + "\n", encoding="utf-8")


def read_left_out(folder: Path) -> list[tuple[str, str]]:
    """The left-out points in every ``left-out-*.json`` of a study."""
    paths = sorted(folder.glob("left-out-*.json"))
    try:
        return [(point, reason) for path in paths for point, reason in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"its list of left-out points is damaged ({error})", str(folder), "delete it") from None


def write_csv(rows: Iterable[StudyRow], path: Path) -> None:
    """Every column of every row; empty where a value is None."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> list[StudyRow]:
    """Rows that :func:`write_csv` wrote.

    Raises:
        DataError: other columns or values.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
        return [
            StudyRow(**{field.name: _parse(line[field.name], str(field.type)) for field in fields(StudyRow)})
            for line in lines
        ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"not a table of a study ({error!r})", str(path), "simulate again") from None


def _parse(text: str, kind: str) -> Any:
    if text == "" and "None" in kind:
        return None
    if kind == "bool":
        return {"True": True, "False": False}[text]
    return {"int": int, "str": str}.get(kind, float)(text)


def efficiency(row: StudyRow, rows: Sequence[StudyRow]) -> float | None:
    """Throughput per rank relative to the smallest world of the same study.

    That is: same experts, mode, device, origin, setting, ZeRO stage and precision, and the same samples per rank (weak)
    or per step (strong). None for another ep at that smallest world.
    """
    base = min((other for other in rows if _study(other) == _study(row)), key=lambda other: (other.world, other.ep))
    if base.world == row.world and base.ep != row.ep:
        return None
    return (row.samples_per_s / row.world) / (base.samples_per_s / base.world)


def _study(row: StudyRow) -> tuple[object, ...]:
    size = row.micro if row.mode == "weak" else row.batch
    return (row.experts, row.mode, row.device, row.measured, row.digest, row.stage, row.precision, size)


def table(rows: Sequence[StudyRow]) -> str:
    """Markdown; simulated rows say so, and the setting is named where there are several."""
    several = len({row.digest for row in rows if row.measured}) > 1
    header = (
        "experts",
        "ranks",
        "ep",
        "mode",
        "batch",
        "step ms",
        "samples/s",
        "efficiency",
        "GB/rank",
        "compute",
        "all-to-all",
        "reduction",
        "optimizer",
        "data",
        "device",
        *(["setting"] if several else []),
        "",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        share = efficiency(row, rows)
        spread = "" if row.step_ms_low is None else f" ({row.step_ms_low:.0f}-{row.step_ms_high:.0f})"
        cells = [
            row.experts,
            row.world,
            row.ep,
            row.mode,
            row.batch,
            f"{row.step_ms:.1f}{spread}",
            f"{row.samples_per_s:.1f}",
            "" if share is None else f"{share:.0%}",
            f"{row.memory_bytes / 1e9:.2f}",
            _ms(row.compute_ms),
            _ms(row.all_to_all_ms),
            _ms(row.reduction_ms),
            _ms(row.optimizer_ms),
            _ms(row.data_ms),
            row.device,
            *([f"{row.setting} ({row.digest})"] if several else []),
            "measured" if row.measured else "SIMULATED, does not fit" if DOES_NOT_FIT in row.source else "SIMULATED",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _ms(value: Any) -> str:
    return "" if value is None else f"{value:.1f}"
