"""``m4oe diff``: what differs, what is compared, and what is not and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.config import to_dict
from m4oe_ds.diff.answers import compare
from m4oe_ds.diff.curves import table
from m4oe_ds.diff.settings import ABSENT, differences
from m4oe_ds.diff.sides import open_both, open_side
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.evaluation.metrics import STATISTICS
from m4oe_ds.runs.folder import RunFolder, write_yaml

SAMPLES = 40


def run(folder: Path, *overrides: str, keys: range = range(SAMPLES), noise: float = 0.0, **logged: Any) -> Path:
    """A run folder with answers to density and risk1; sample k has the same labels in every run."""
    files = RunFolder(folder)
    files.predictions_folder.mkdir(parents=True)
    write_yaml(files.config, to_dict(config_loader.load(None, ("data.tasks=[density, risk1]", *overrides))))
    files.ds_config.write_text(json.dumps({"train_batch_size": 32, "optimizer": {"params": {"lr": 1e-4}}}))
    files.environment.write_text(json.dumps({"world": 2, "synthetic": True}))
    steps = [{"step": k, "loss": logged.get("loss", 3.0) / k} for k in range(1, 9)]
    steps += [{"step": k, "event": "validation", "loss": 4.0 / k} for k in (4, 8)]
    files.log.write_text("".join(json.dumps(one) + "\n" for one in steps) + '{"step": 9, "lo')
    arrays: dict[str, list[Any]] = {name: [] for name in ("keys", "groups", "label_density", "label_risk1")}
    scores: dict[str, list[Any]] = {"prob_density": [], "prob_risk1": []}
    for k in keys:
        random = np.random.default_rng(k)
        density, risk = int(random.integers(4)), int(random.integers(-1, 2))
        arrays["keys"].append(f"embed-{k:016x}-l")
        arrays["groups"].append(f"{k // 2:016x}")
        arrays["label_density"].append(density)
        arrays["label_risk1"].append(risk)
        score = np.eye(4)[density] + random.random(4) * (0.5 + noise)
        scores["prob_density"].append(score / score.sum())
        high = min(max(0.3 + 0.4 * (risk == 1) + random.normal() * (0.1 + noise), 0.01), 0.99)
        scores["prob_risk1"].append([1 - high, high])
    np.savez(files.predictions("test"), **{name: np.array(one) for name, one in (arrays | scores).items()})
    return folder


def test_every_key_with_two_values_and_no_other(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    b = run(
        tmp_path / "b", "loss.alpha=0.2", "model.embedder.options={patch_size: 8}", "loss.tasks={risk1: {weight: 2}}"
    )
    RunFolder(b).ds_config.write_text(json.dumps({"train_batch_size": 64, "optimizer": {"params": {}}}))
    RunFolder(b).environment.write_text(json.dumps({"world": 4, "synthetic": True, "num_parameters": 3}))
    found = {(one.source, one.key): (one.first, one.second) for one in differences(open_side(a), open_side(b))}
    tasks = {key: value for (_, key), value in found.items() if key.startswith("loss.tasks")}
    rest = {key: value for key, value in found.items() if not key[1].startswith("loss.tasks")}
    assert tasks["loss.tasks.risk1.weight"] == (ABSENT, "2.0")
    assert rest == {
        ("configuration", "loss.alpha"): ("0.05", "0.2"),
        ("configuration", "model.embedder.options"): ("{}", ABSENT),
        ("configuration", "model.embedder.options.patch_size"): (ABSENT, "8"),
        ("DeepSpeed", "train_batch_size"): ("32", "64"),
        ("DeepSpeed", "optimizer.params.lr"): ("0.0001", ABSENT),
        ("DeepSpeed", "optimizer.params"): (ABSENT, "{}"),
        ("environment", "world"): ("2", "4"),
    }
    assert differences(open_side(a), open_side(a)) == []


def test_answers_are_compared_on_the_samples_that_both_have_in_whatever_order(tmp_path: Path) -> None:
    a = run(tmp_path / "a", keys=range(0, 36))
    b = run(tmp_path / "b", keys=range(39, 5, -1), noise=1.5)
    found = compare(*open_both(a, b), "test", resamples=50)
    assert (found.samples, found.only_first, found.only_second) == (30, 6, 4)
    assert found.left_out == {}
    assert [(task, row.metric) for task, row in found.rows] == [
        ("risk1", "balanced_accuracy"),
        ("risk1", "auroc"),
        ("density", "balanced_accuracy"),
        ("density", "auroc"),
    ]
    rows = {(task, row.metric): row for task, row in found.rows}
    shared = {path: dict(np.load(RunFolder(path).predictions("test"))) for path in (a, b)}
    for path, side in ((a, "second"), (b, "first")):  # the difference is B - A
        order = [
            shared[path]["keys"].tolist().index(key) for key in sorted(set(shared[a]["keys"]) & set(shared[b]["keys"]))
        ]
        labels, probability = shared[path]["label_risk1"][order], shared[path]["prob_risk1"][order]
        known = labels >= 0
        expected = STATISTICS["auroc"][0](labels[known], probability[known])
        assert getattr(rows["risk1", "auroc"], side) == pytest.approx(expected)
        assert rows["risk1", "auroc"].n == int(known.sum())
    row = rows["risk1", "auroc"]
    assert row.difference == pytest.approx((row.first or 0) - (row.second or 0))
    assert row.difference is not None
    assert row.difference < 0  # B has more noise
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.difference <= row.high


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    a, same = run(tmp_path / "a"), run(tmp_path / "b")
    apart = run(tmp_path / "c", keys=range(100, 120))
    one = run(tmp_path / "d", "data.tasks=[density]")
    relabelled = run(tmp_path / "e")
    path = RunFolder(relabelled).predictions("test")
    arrays = dict(np.load(path))
    arrays["label_density"][:3] = (arrays["label_density"][:3] + 1) % 4
    np.savez(path, **arrays)
    side = open_side(a)
    assert not compare(side, open_side(same), "test", 5).left_out
    assert "no sample was predicted by both" in compare(side, open_side(apart), "test", 5).left_out["all answers"]
    assert compare(side, open_side(one), "test", 5).left_out == {"risk1": f"only {a} answers it"}
    assert "labels differ in 3 samples" in compare(side, open_side(relabelled), "test", 5).left_out["density"]
    other = run(tmp_path / "f", "data.dataset=rsna", "data.tasks=[]")
    assert "different data sets" in compare(side, open_side(other), "test", 5).left_out["all answers"]


def test_runs_that_cannot_be_opened(tmp_path: Path) -> None:
    a = run(tmp_path / "a")
    with pytest.raises(ConfigError, match="is given twice"):
        open_both(a, tmp_path / "a" / ".." / "a")
    with pytest.raises(DataError, match="no such run folder"):
        open_both(a, tmp_path / "none")
    with pytest.raises(DataError, match=r"no predictions of the split 'val'; .*there are: test"):
        compare(open_side(a), open_side(a), "val", 5)
    RunFolder(a).log.write_text('{"step": 1}\n')
    with pytest.raises(DataError, match="line 1 is damaged: it has no loss"):
        open_side(a)
    RunFolder(a).log.write_text("")
    RunFolder(a).predictions("test").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be read"):
        compare(open_side(a), open_side(a), "test", 5)


def test_the_table_of_losses(tmp_path: Path) -> None:
    sides = open_side(run(tmp_path / "a")), open_side(run(tmp_path / "b", loss=1.0))
    assert table(*sides) == [
        ["step", "training A", "training B", "validation A", "validation B"],
        ["4", "0.7500", "0.2500", "1.0000", "1.0000"],
        ["8", "0.3750", "0.1250", "0.5000", "0.5000"],
        ["best", "", "", "0.5000 (step 8)", "0.5000 (step 8)"],
    ]


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", "loss.alpha=0.2", noise=1.0)
    out = tmp_path / "out"
    assert main(["diff", str(a), str(b), "--resamples", "20", "--output", str(out)]) == 0
    text = capsys.readouterr().out
    for words in (
        "loss.alpha",
        "0.05",
        "0.2",
        "best",
        "risk1",
        "auroc",
        "40 samples of 20 patients that both predicted",
    ):
        assert words in text
    names = "curves.csv curves.png curves.svg diff.html diff.json roc.png roc.svg"
    assert sorted(path.name for path in out.iterdir()) == names.split()
    content = json.loads((out / "diff.json").read_text())
    assert content["differences"] == [
        {"source": "configuration", "key": "loss.alpha", "first": "0.05", "second": "0.2"}
    ]
    assert {one["task"] for one in content["answers"]} == {"density", "risk1"}
    answer = next(one for one in content["answers"] if (one["task"], one["metric"]) == ("risk1", "auroc"))
    assert answer["difference"] == pytest.approx(answer["second"] - answer["first"])
    page = (out / "diff.html").read_text()
    assert "Synthetic data" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_nothing_to_compare_is_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", keys=range(100, 110))
    assert main(["diff", str(a), str(b)]) == 1
    assert "not compared: all answers" in capsys.readouterr().out


def test_answers_to_different_shards_are_called_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b", noise=0.3)
    for folder, digest in ((a, "a" * 64), (b, "b" * 64)):
        RunFolder(folder).metrics.write_text(json.dumps({"test": {"data_digest": digest}}))
    assert main(["diff", str(a), str(b), "--resamples", "20"]) == 0
    assert f"A and B answered different shards (digests {'a' * 12} and {'b' * 12})" in capsys.readouterr().out
    RunFolder(b).metrics.write_text(RunFolder(a).metrics.read_text())
    assert main(["diff", str(a), str(b), "--resamples", "20"]) == 0
    assert "different shards" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"evaluate .* --split test --data DIR/clinic"):
        open_side(a).answers("test@clinic")
    (RunFolder(a).predictions("test")).rename(RunFolder(a).predictions("test@clinic"))
    assert len(open_side(a).answers("test@clinic")["keys"]) == SAMPLES
