"""Makes a synthetic archive in the layout of a real one: ``python -m data_tools.phantom --layout embed --out DIR``.

The archive holds valid image files, tables with the columns and the faults of the real ones, and the planted truth
(``truth.json``): the labels every sample must get and the share of the evidence in each modality. No image comes from
a person; ``phantom.json`` and ``truth.json`` say ``"synthetic": true``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m4oe_ds.arguments import MOST_PROCESSES, Parser, number, whole
from m4oe_ds.command_line import check_output, guarded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_PATIENTS = 1_000_000  # of an archive: more is a slip of the finger
LAYOUTS = ("embed", "rsna", "vindr", "gamma", "cbis")
Job = tuple[str, str, int, int, bool, float]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_table(path: Path, columns: Sequence[str], rows: list[dict[str, str]]) -> None:
    """Writes a table as CSV."""
    import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerow(columns)
        csv.DictWriter(stream, columns, lineterminator="\n").writerows(rows)


def _make_one(job: Job) -> dict[str, Any]:
    """Makes one patient in a worker process."""
    layout, root, *rest = job
    made: dict[str, Any] = importlib.import_module(f"data_tools.phantom.{layout}").make_patient(Path(root), *rest)
    return made


def _results(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Makes the patients in ``workers`` processes and yields them in order."""
    if workers <= 1:
        yield from map(_make_one, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # one thread per process: the processes are the parallelism. Read by the numerical libraries when they load.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_make_one, jobs, chunksize=2)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _already_made(out: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of an archive made before with the same arguments, None for an empty or absent folder.

    Raises:
        DataError: the folder holds anything else.
    """
    from m4oe_ds.errors import DataError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record = out / "phantom.json"
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if isinstance(found, dict) and found.get("arguments") == arguments:
            return found
        raise DataError("holds a phantom archive made with other arguments", str(out), "choose another folder")
    raise DataError("is not empty and holds no finished phantom archive", str(out), "choose another folder or empty it")


def generate(
    layout: str,
    out: Path,
    patients: int,
    seed: int,
    workers: int | None = None,
    faults: str = "full",
    risk_prevalence: float = 0.35,
) -> dict[str, Any]:
    """Makes an archive of ``patients`` synthetic patients in the folder ``out``.

    Args:
        layout: one of ``LAYOUTS``.
        out: an absent or empty folder; one with an archive of the same arguments is left as it is.
        patients: number of patients.
        seed: seed of everything; the bytes of the archive depend on nothing else, in particular not on ``workers`` (but
            GAMMA's spreadsheet holds the time at which it was written).
        workers: processes; None takes the processors of this machine, at most 8.
        faults: ``full`` plants the known faults of the real archive, ``none`` plants none.
        risk_prevalence: share of women with a cancer within five years of their first exam (EMBED), or with a finding.

    Returns:
        What was made, as in ``phantom.json``; ``reused`` says that it was there already.

    Raises:
        DataError: ``out`` holds something else, or an argument is out of range.
    """
    from m4oe_ds.errors import DataError

    if layout not in LAYOUTS or faults not in ("full", "none"):
        raise DataError(f"layout {layout!r}, faults {faults!r}", "", f"use a layout of {LAYOUTS}, faults full or none")
    if patients < 1 or seed < 0 or not 0.0 <= risk_prevalence <= 1.0:
        raise DataError(
            f"patients {patients}, seed {seed}, risk prevalence {risk_prevalence}",
            "",
            "use at least 1 patient, a seed of at least 0 and a prevalence in 0..1",
        )
    out = Path(out)
    arguments = {
        "layout": layout,
        "patients": patients,
        "seed": seed,
        "faults": faults,
        "risk_prevalence": risk_prevalence,
    }
    found = _already_made(out, arguments)
    if found is not None:
        return {**found, "reused": True}
    check_output(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if patients > 8 else 1
    jobs = [(layout, str(out), seed, index, faults == "full", risk_prevalence) for index in range(patients)]
    return {**_make(layout, out, jobs, workers, arguments), "reused": False}


def _make(layout: str, out: Path, jobs: list[Job], workers: int, arguments: dict[str, Any]) -> dict[str, Any]:
    from m4oe_ds.progress import track

    module = importlib.import_module(f"data_tools.phantom.{layout}")
    tables: dict[str, list[dict[str, str]]] = {path: [] for path in module.COLUMNS}
    sheet: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(dict.fromkeys(module.FAULTS, 0))
    variety: Counter[str] = Counter()
    files = 0
    for result in track(_results(jobs, workers), "making the archive", "synthetic patients", len(jobs)):
        for path, rows in result["tables"].items():
            tables[path] += rows
        sheet += [result["sheet"]] if "sheet" in result else []
        samples += result["samples"]
        counts.update(result["faults"])
        variety.update(result["variety"])
        files += result["files"]
    for path, rows in tables.items():
        if "Unnamed: 0" in module.COLUMNS[path]:
            for number, row in enumerate(rows):
                row["Unnamed: 0"] = str(number)
        _write_table(out / path, module.COLUMNS[path], rows)
    if sheet:
        module.write_sheet(out, sheet)
    _write_json(out / "truth.json", {"synthetic": True, "samples": samples})
    _write_json(out / "faults.json", {"faults": dict(sorted(counts.items())), "variety": dict(sorted(variety.items()))})
    summary = {"synthetic": True, "arguments": arguments, "samples": len(samples), "images": files}
    _write_json(out / "phantom.json", summary)  # last: its presence says that the archive is complete
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m data_tools.phantom", description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command line."""
    parser.add_argument("--layout", choices=LAYOUTS, required=True, help="the archive to imitate")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make; must be absent or empty"
    )
    parser.add_argument(
        "--patients", type=whole(1, MOST_PATIENTS), default=48, metavar="N", help="number of patients; default 48"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="seed of everything random; default 0"
    )
    parser.add_argument(
        "--workers",
        type=whole(1, MOST_PROCESSES),
        default=None,
        metavar="N",
        help="processes; default: one per processor, at most 8",
    )
    parser.add_argument("--faults", choices=("full", "none"), default="full", help="plant known faults; default full")
    parser.add_argument(
        "--risk-prevalence",
        type=number(at_least=0, at_most=1),
        default=0.35,
        metavar="SHARE",
        help="share, 0 to 1, of women with cancer within five years; default 0.35",
    )


def run(options: argparse.Namespace) -> int:
    """Makes the archive that the options ask for; returns the exit code.

    Raises:
        UserError: arguments that cannot be, or a folder that holds something else.
    """
    made = generate(
        options.layout,
        options.out,
        options.patients,
        options.seed,
        options.workers,
        options.faults,
        options.risk_prevalence,
    )
    verb = "already there" if made["reused"] else "made"
    what = f"{made['images']} synthetic images of {options.patients} patients, {made['samples']} samples"
    print(f"{verb}: {what} in {options.out}")
    return 0
