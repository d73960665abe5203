"""The report is one file without a network, says what is missing, and shows every task."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds.cli import main
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.report import pictures
from m4oe_ds.report.html import render

TASKS = find_card("embed").tasks
MODALITIES = find_card("embed").modalities


def fill(folder: Path) -> Path:
    """A run folder with made-up numbers."""
    random = np.random.default_rng(0)
    count = 24
    keys = np.array([f"embed-{i:016x}-l" for i in range(count)])
    shares = random.dirichlet(np.ones(len(MODALITIES)), (count, len(TASKS))).astype(np.float32)
    arrays = {
        "keys": keys,
        "groups": keys,
        "tasks": np.array([t.name for t in TASKS]),
        "modalities": np.array(MODALITIES),
        "token_share": np.full(4, 0.25),
        "contribution": shares,
    }
    for task in TASKS:
        arrays[f"label_{task.name}"] = random.integers(-1, task.num_classes, count)
        arrays[f"prob_{task.name}"] = random.dirichlet(np.ones(task.num_classes), count)
    (folder / "predictions").mkdir(parents=True)
    np.savez(folder / "predictions" / "test.npz", **arrays)
    present = np.ones((2, 4), dtype=bool)
    present[1, 2] = False
    np.savez(
        folder / "predictions" / "examples.npz",
        keys=keys[:2],
        present=present,
        contribution=shares[:2],
        views=random.integers(0, 255, (2, 4, 16, 14)).astype(np.uint8),
        exams=np.array(["a", "b"]),
    )
    metrics = {
        "test": evaluate_split(arrays, TASKS, resamples=20),
        "checkpoint": {"tag": "step-00000003", "selected_by": "loss"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    records = [
        {
            "step": s,
            "loss": 5.0 - s,
            "losses": {t.name: None if s == 2 else 1.0 for t in TASKS},
            "mi": 0.1,
            "lr": 1e-4,
            "grad_norm": 1.0,
        }
        for s in (1, 2, 3)
    ]
    records.append({"event": "validation", "step": 3, "loss": 4.0, "losses": {}})
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "environment.json").write_text(
        json.dumps({"synthetic": True, "dataset": "embed", "num_parameters": 1234567})
    )
    (folder / "config.yaml").write_text("config_version: 1\nrun: {name: '<script>'}\n")
    (folder / "ds_config.json").write_text("{}")
    return folder


class Tags(HTMLParser):
    """Collects sources, links and images without a description; checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: list[str] = []
        self.undescribed = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.addresses += [str(values[name]) for name in ("src", "href") if name in values]
        self.anchors += [str(values["id"])] if "id" in values else []
        self.undescribed += tag == "img" and not values.get("alt")
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def test_report_is_self_contained_and_complete(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    text = render(folder).read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    pictures = [address for address in tags.addresses if address.startswith("data:image/png;base64,")]
    drawings = [address for address in tags.addresses if address.startswith("data:image/svg+xml;base64,")]
    numbers = [address for address in tags.addresses if address.startswith("data:text/csv;base64,")]
    pages = [address for address in tags.addresses if address.startswith("patients/")]
    links = [address[1:] for address in tags.addresses if address.startswith("#")]
    assert len(pictures) == 7  # images of the samples; one view is absent
    assert len(drawings) == len(numbers) == 6
    for address in numbers:
        assert b"\n" in base64.b64decode(address.partition(",")[2])
    assert len(pages) == 2
    assert all((folder / page).is_file() for page in pages)
    others = {*tags.addresses} - {*pictures, *drawings, *numbers, *pages} - {f"#{link}" for link in links}
    assert others == {"data:,"}  # an empty icon, so that no browser asks for one
    assert len(links) >= 6
    assert set(links) <= set(tags.anchors)
    assert tags.undescribed == 0
    assert not re.search(r"https?://", text)
    assert "<script" not in text  # user text is escaped
    for task in TASKS:
        assert f">{task.label[:1].upper()}{task.label[1:]}<" in text
        assert f">{task.name}<" not in text
    for phrase in (
        "not patient data",
        "majority",
        "not causal importance",
        "It is not a medical device",
        "Vickers",
        "outside the breast",
    ):
        assert phrase in text
    assert "1,234,567" in text
    # pseudonyms stand on the pages of patients only, by whose name they are linked
    assert not re.search(r"embed-[0-9a-f]{16}", re.sub(r'href="patients/[^"]*"', "", text))
    for name in ("losses", "signals", "confusions", "roc", "contribution", "decision"):
        assert (folder / "figures" / f"{name}.svg").is_file()
        assert (folder / "figures" / f"{name}.csv").is_file()
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000


def test_missing_files_are_named_not_hidden(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    (folder / "log.jsonl").unlink()
    (folder / "predictions" / "test.npz").unlink()
    text = render(folder).read_text()
    assert "Not in this run folder" in text
    assert "log.jsonl" in text
    assert "predictions/test.npz" in text
    assert "risk1" in text  # the table of metrics.json is still there


def test_what_is_no_finished_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    unfinished, damaged, hollow = (fill(tmp_path / name) for name in ("unfinished", "damaged", "hollow"))
    (unfinished / "metrics.json").unlink()
    (damaged / "metrics.json").write_text("{")
    (hollow / "metrics.json").write_text("{}")
    for name, words in {
        "absent": "no such run folder",
        "empty": "no run in this folder; name the folder",
        "unfinished": "no results yet: no metrics.json; let training finish .--resume auto., or run `m4oe evaluate",
        "damaged": "metrics.json: is damaged: 1 bytes, no JSON",
        "hollow": "holds no results",
    }.items():
        with pytest.raises(DataError, match=words) as found:
            render(tmp_path / name)
        assert "\n" not in str(found.value)
        assert not (tmp_path / name / "report.html").exists()
        assert not (tmp_path / name / "figures").exists()


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == DataError.exit_code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "no run in this folder" in said.err
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_large_csv_is_linked_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGEST_CSV", 300)
    folder = fill(tmp_path / "run")
    tags = Tags()
    tags.feed(render(folder).read_text())
    linked = [address for address in tags.addresses if address.startswith("figures/")]
    assert "figures/roc.csv" in linked
    assert all((folder / address).is_file() for address in linked)
    assert any(address.startswith("data:text/csv") for address in tags.addresses)  # the small ones


def test_a_drawing_too_large_for_the_page_is_shown_as_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "run")
    render(folder)
    drawn = pictures.picture(folder / "figures" / "roc.png", "")
    monkeypatch.setattr(pictures, "LARGEST_SVG", 10)
    shown = pictures.picture(folder / "figures" / "roc.png", "")
    assert drawn.image.startswith("data:image/svg+xml;base64,")
    assert shown.image.startswith("data:image/png;base64,")
    assert abs(drawn.width - shown.width) <= 2
    assert abs(drawn.height - shown.height) <= 2


def test_the_chosen_step_is_marked_and_named(tmp_path: Path) -> None:
    text = render(fill(tmp_path / "run")).read_text()
    assert "the weights of step 3 were kept" in text


def test_the_table_has_no_column_that_no_task_fills(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    assert ">kappa</th>" in render(folder).read_text(encoding="utf-8")  # of the tasks in order
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"]["tasks"] = {"risk1": metrics["test"]["tasks"]["risk1"]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = render(folder).read_text(encoding="utf-8")
    assert ">AUROC</th>" in text
    assert not any(f">{name}</th>" in text for name in ("kappa", "classes off"))
