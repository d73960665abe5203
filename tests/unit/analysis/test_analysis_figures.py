"""``m4oe analyze`` from a run folder to files, readers of what other commands wrote, figures of awkward data."""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m4oe_ds import config_loader
from m4oe_ds.analysis import command, figures
from m4oe_ds.analysis.conflict import conflict_pairs, conflict_rows
from m4oe_ds.analysis.inputs import sweep_rows, twin_folders
from m4oe_ds.analysis.options import AnalysisOptions
from m4oe_ds.analysis.pid import decompose as pid
from m4oe_ds.analysis.pid.estimator import BatchSettings
from m4oe_ds.analysis.pid.synergy import PairSynergy, SynergyReport
from m4oe_ds.analysis.sections import WORK
from m4oe_ds.analysis.session import Session, Skip
from m4oe_ds.analysis.synergy_section import reliable
from m4oe_ds.config import to_dict
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.models import build, spec_for
from m4oe_ds.report.figures import save
from m4oe_ds.runs.finished import open_run
from m4oe_ds.runs.folder import RunFolder, plain, write_yaml
from tests.integration import shards

MODALITIES = ("ffdm_cc", "ffdm_mlo", "syn_cc", "syn_mlo")
TASKS = 7


def make_run(folder: Path, data: Path, *overrides: str) -> Path:
    """A run folder with random weights, as training would leave it."""
    config = config_loader.load(None, (*shards.SMALL, f"data.root={data}", *overrides))
    model = build(config)
    torch.manual_seed(3)
    for parameter in model.parameters():  # biases and embeddings that start at zero would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    (folder / "weights").mkdir(parents=True)
    write_yaml(folder / "config.yaml", to_dict(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(folder / "weights" / "model.safetensors"))
    tasks = [task.name for task in spec_for(config).tasks]
    lines = []
    for step in range(4):
        value = [-0.5, 0.005, 0.5, 0.02][step]
        cosines = [[1.0 if a == b else value for a in range(3)] for b in range(3)]
        cosines[2][1] = cosines[1][2] = None
        record = {"tasks": [tasks[0], tasks[1], tasks[6]], "cosines": cosines}
        lines.append(json.dumps({"step": step, "epoch": step // 2, "gradient_conflict": record}))
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"step": 4, "epo']))
    return folder


def analyze(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and next to them a truth in which the first two views hold everything."""
    root = tmp_path_factory.mktemp("shards") / "demo"
    shards.write(root, {"train": 40, "val": 8, "test": 30})
    samples, rows = [], []
    config = config_loader.load(None, (*shards.SMALL, f"data.root={root}"))
    from m4oe_ds.runs import assemble

    manifests = assemble.load_manifests(config, ("train", "test"))
    stream = assemble.stream(config, "test", spec_for(config), 30, 1, manifests)
    for number, key in enumerate(next(iter(stream.evaluation())).keys):
        one = dict(zip(MODALITIES, np.random.default_rng(number).dirichlet(np.ones(4)), strict=True))
        patient = {"patient": f"p{number}", "exam": "e", "side": key[-1]}
        samples.append({**patient, "information": {"density": one, "risk1": one}})
        rows.append({"key": key, **patient, "split": "test"})
    archive = root.with_name("demo-archive")
    archive.mkdir()
    (archive / "truth.json").write_text(json.dumps({"synthetic": True, "samples": samples}))
    with root.with_name("demo.mapping.csv").open("w", newline="") as stream_:
        writer = csv.DictWriter(stream_, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_a_run_that_kept_its_data_is_analysed(data: Path, tmp_path: Path) -> None:
    """Such a run opens without the training split, which two sections read."""
    run = make_run(tmp_path / "ours", data)
    opened = open_run(run, train=True)
    opened.data.save(RunFolder(run).data)
    assert set(open_run(run, "test").manifests) == {"test"}
    assert analyze(str(run), "--only", "competition,utilisation", "--resamples", "20") == 0
    found = json.loads((run / "analysis.json").read_text())
    assert (found["skipped"], "competition" in found) == ({}, True)
    for name in ("fig3bc_utilisation", "fig3a_competition_risk1"):
        drawn = RunFolder(run).figures / name
        assert "ffdm_cc" in drawn.with_suffix(".csv").read_text()  # the names for programs,
        comments = " ".join(re.findall("<!-- (.*?) -->", drawn.with_suffix(".svg").read_text(), re.DOTALL))
        assert "Digital" in comments  # the card's words for readers
        assert not re.search("ffdm|risk1", comments)


def test_a_run_without_classes_has_no_synergy(tmp_path: Path) -> None:
    nothing: Any = SimpleNamespace(task={})
    run: Any = SimpleNamespace(spec=SimpleNamespace(modalities=("scan", "clinic")))
    with pytest.raises(Skip, match="no task of classes"):
        WORK["synergy"](Session(AnalysisOptions(tmp_path), run, "m4oe", {}, SimpleNamespace(features=nothing), nothing))


SWEEP = """option,value,data set,method,task,metric,mean,spread,seeds
alpha,0.1,embed,ours,density,accuracy,0.8,0.01,3
alpha,0,embed,ours,density,accuracy,0.7,,1
experts,16,embed,ours,density,accuracy,0.75,0.02,3
alpha,0,embed,ours,density,auroc,0.9,0.02,3
"""


def test_a_run_becomes_json_and_figures(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "ours", data)
    plain_moe = make_run(tmp_path / "soft", data, "model.name=soft_moe")
    twin = make_run(tmp_path / "twin", data, "data.modalities=[ffdm_cc]")
    (tmp_path / "sweep.csv").write_text(SWEEP)
    quick = ("--resamples", "20")
    assert analyze(str(plain_moe), "--only", "utilisation,experts,conflict,contribution", *quick) == 0
    sections = "utilisation,contribution,experts,competition,conflict,sweep,interpretability"
    more = ("--baseline", str(plain_moe), "--sweep", str(tmp_path / "sweep.csv"), "--unimodal", f"ffdm_cc={twin}")
    assert analyze(str(run), "--only", sections, *quick, *more) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert str(run / "analysis.json") in last
    assert "(synthetic data)" in last
    found = json.loads((run / "analysis.json").read_text())
    assert found["samples"] == 30
    assert found["skipped"] == {}
    assert sum(found["utilisation"]["utilisation_i"]) == pytest.approx(1.0, abs=1e-5)
    assert found["utilisation"]["layer"] == "mtoe"
    assert len(found["experts"]["combine"]["sparsity_hoyer_k"]) == TASKS
    baseline = json.loads((plain_moe / "analysis.json").read_text())
    assert baseline["utilisation"]["slots"] == "shared"
    assert "combine" not in baseline["experts"]
    assert len(baseline["experts"]["gradient_activation"]["dependency_jk"]) == 8
    drops = [row for row in found["competition"] if "drop" in row]
    assert {row["modality"] for row in drops} == {"ffdm_cc"}
    assert {row["protocol"] for row in found["competition"]} == {"linear", "mask"}
    scores = found["interpretability"]["scores"]
    assert set(scores) == {"truth", "ablation"}
    assert set(scores["truth"]) == {"routing", "saliency", "rollout", "ablation", "uniform"}
    assert scores["truth"]["routing"]["sample"]["risk2"]["spearman"] is None  # nothing planted
    assert scores["truth"]["routing"]["sample"]["risk1"]["n"] == 20 * 4 + 10 * 2
    with np.load(run / "analysis" / "test.npz", allow_pickle=False) as rows:
        assert rows["contribution"].shape == rows["saliency"].shape == (30, TASKS, 4)
        expected = rows["contribution"][:, 0]
        assert np.abs(expected.sum(1) - 1).max() < 1e-4
    names = (
        "fig3a_competition_density",
        "fig3a_competition_risk1",
        "fig3bc_utilisation",
        "fig5_contribution",
        "fig6a_conflict",
        "fig6b_experts",
        "fig7_ablation",
        "interpretability",
    )
    for name in names:
        for kind in ("png", "svg", "csv"):
            assert (run / "figures" / f"{name}.{kind}").stat().st_size > 0
    with (run / "figures" / "fig3bc_utilisation.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["model"] for row in table] == ["soft_moe"] * 4 + ["m4oe"] * 4
    assert float(table[4]["share"]) == pytest.approx(found["utilisation"]["utilisation_i"][0])
    # another look keeps what it does not repeat; other samples start anew
    assert analyze(str(run), "--only", "conflict") == 0
    assert json.loads((run / "analysis.json").read_text())["experts"] == found["experts"]
    assert analyze(str(run), "--only", "utilisation", "--limit", "7") == 0
    limited = json.loads((run / "analysis.json").read_text())
    assert "experts" not in limited
    assert limited["samples"] == 7


def test_wrong_options_name_what_to_do(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.yaml"):
        analyze(str(tmp_path))
    run = make_run(tmp_path / "run", data)
    with pytest.raises(ConfigError, match="no analysis everything"):
        analyze(str(run), "--only", "everything")
    with pytest.raises(ConfigError, match="is the run itself"):
        analyze(str(run), "--baseline", str(run))
    with pytest.raises(DataError, match="not analysed yet"):
        analyze(str(run), "--baseline", str(make_run(tmp_path / "other", data)))
    with pytest.raises(ConfigError, match="no classification task cup"):
        analyze(str(run), "--tasks", "cup")
    with pytest.raises(ConfigError, match="MODALITY=RUN"):
        twin_folders(["oct=runs/x"], MODALITIES)
    assert twin_folders(["syn_cc=runs/x"], MODALITIES) == {"syn_cc": Path("runs/x")}


def test_a_limit_cuts_a_batch_and_its_labels(data: Path, tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", data, "evaluation.micro_batch=4"), "test")
    everything = [key for b in run.batches("test") for key, v in zip(b.keys, b.valid, strict=True) if v]
    batches = list(run.batches("test", 6))
    assert [int(batch.valid.sum()) for batch in batches] == [4, 2]
    assert not batches[1].label_mask[2:].any()
    kept = [key for b in batches for key, v in zip(b.keys, b.valid, strict=True) if v]
    assert kept == everything[:6]
    assert len(everything) == 30
    assert run.num_batches("test", 6) == 2
    assert not run.config.data.augment.enabled


def test_conflict_shares_per_epoch(tmp_path: Path) -> None:
    def line(epoch: int, *values: float | None) -> str:
        a, b, c = values
        cosines = [[1.0, a, b], [a, 1.0, c], [b, c, 1.0]]
        conflict = {"tasks": ["x", "y", "z"], "cosines": cosines}
        return json.dumps({"step": 1, "epoch": epoch, "gradient_conflict": conflict})

    bare = '{"step": 1, "epoch": 0}'
    text = [line(0, -0.5, -0.0101, 0.0099), line(0, 0.5, None, -0.01), bare, line(1, 0.2, 0.2, 0.2), '{"ep']
    (tmp_path / "log.jsonl").write_text("\n".join(text))
    rows = conflict_rows(tmp_path)
    assert [(row["epoch"], row["pairs"]) for row in rows] == [(0, 5), (1, 3)]
    assert (rows[0]["conflict"], rows[0]["neutral"], rows[0]["enhance"]) == (0.4, 0.4, 0.2)
    assert rows[0]["mean_cosine"] == pytest.approx((-0.5 - 0.0101 + 0.0099 + 0.5 - 0.01) / 5)
    only = conflict_rows(tmp_path, ("z", "x"))
    assert [(row["epoch"], row["pairs"], row["conflict"]) for row in only] == [(0, 1, 1.0), (1, 1, 0.0)]
    assert conflict_rows(tmp_path / "absent") == []
    pairs = conflict_pairs(tmp_path)
    assert pairs["tasks"] == ["x", "y", "z"]
    assert pairs["steps"].tolist() == [[0, 3, 2], [3, 0, 3], [2, 3, 0]]
    assert pairs["conflict"][0, 1] == pairs["conflict"][1, 0] == pytest.approx(1 / 3)
    assert pairs["enhance"][0, 2] == pytest.approx(1 / 2)
    assert pairs["mean_cosine"][1, 2] == pytest.approx((0.0099 - 0.01 + 0.2) / 3)
    assert np.isnan(np.diag(pairs["conflict"])).all()
    assert (pairs["measured"], pairs["undefined"], pairs["dimension"]) == (3, 1, None)
    assert conflict_pairs(tmp_path / "absent")["measured"] == 0


def test_sweeps_are_read_from_the_comparison(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    path.write_text(SWEEP)
    rows = sweep_rows(path, "accuracy")
    assert [(row["sweep"], row["value"], row["mean"]) for row in rows] == [
        ("alpha", 0.1, 0.8),
        ("alpha", 0.0, 0.7),
        ("experts", 16.0, 0.75),
    ]
    assert math.isnan(rows[1]["sd"])
    assert rows[0]["task"] == "density"
    path.write_text(SWEEP + "alpha,0,rsna,ours,density,accuracy,0.6,0.1,3\n")
    assert sweep_rows(path, "accuracy")[-1]["task"] == "rsna density"
    with pytest.raises(DataError, match=r"no row of metric .dice."):
        sweep_rows(path, "dice")
    path.write_text(SWEEP.replace("option", "what"))
    with pytest.raises(DataError, match="no column option"):
        sweep_rows(path, "accuracy")
    path.write_text(SWEEP.replace("0.75", "good"))
    with pytest.raises(DataError, match="cannot be read"):
        sweep_rows(path, "accuracy")


def test_planted_synergy_is_found_from_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2, 400))
    names = ("a", "b", "c")
    codes = {"a": bits[0], "b": bits[1], "c": rng.integers(0, 2, 400)}
    value = {name: rng.normal(size=(2, 30))[code] + 0.05 * rng.normal(size=(400, 30)) for name, code in codes.items()}
    present = np.ones((400, 3), dtype=bool)
    present[:40, 2] = False
    value["c"][:40] = 1e6  # absent: must not be read

    def part(rows: slice) -> Any:
        return SimpleNamespace(
            present=present[rows],
            groups=np.arange(400)[rows],
            representation="mtoe",
            predicted={"t": (bits[0] ^ bits[1])[rows]},
            task={"t": {name: x[rows] for name, x in value.items()}},
        )

    options = AnalysisOptions(tmp_path, permutations=0)
    config = SimpleNamespace(data=SimpleNamespace(dataset="embed"))
    run: Any = SimpleNamespace(folder=tmp_path, spec=SimpleNamespace(modalities=names), config=config)
    collected: Any = SimpleNamespace(features=part(slice(300, 400)))
    train: Any = part(slice(0, 300))
    found = WORK["synergy"](Session(options, run, "ours", {}, collected, train))
    table = np.array(found["matrices"]["t"]["synergy"], dtype=float)
    assert table[0, 1] > 0.6
    assert max(table[0, 2], table[1, 2]) < 0.1
    assert [pair["samples"] for pair in found["pairs"]] == [400, 360, 360]
    assert (tmp_path / "figures" / "fig4_synergy.svg").is_file()


def test_synergy_of_a_handful_of_positives_is_not_shown() -> None:
    def pair(second: str, total: float) -> PairSynergy:
        values = dict.fromkeys(
            ("redundancy", "unique1", "unique2", "synergy", "null_mean", "null_q95", "low", "high"), 0.1
        )
        return PairSynergy(
            "m",
            "t",
            "a",
            second,
            "prediction",
            "batch",
            **values,
            total=total,
            target_entropy=0.5,
            permutations=0,
            samples=200,
            patients=100,
            missing_label=0,
            missing_modality=0,
        )

    report = SynergyReport(("a", "b", "c", "d"), (pair("b", 0.52), pair("c", 0.4), pair("d", 0.6)))
    predicted = (np.arange(200) < 40).astype(np.int64)
    everyone = np.ones(200, dtype=bool)
    present = {"a": everyone, "b": everyone, "c": np.arange(200) >= 20, "d": everyone}  # c lacks 20 of the 40 positives
    found = reliable(report, predicted, present)
    assert [one.modality2 for one in found.pairs] == ["b"]
    assert [entry[2] for entry in found.skipped] == ["c", "d"]
    assert "fewer than 30" in found.skipped[0][3]
    assert "well above H(Y)" in found.skipped[1][3]


def test_principal_components_keep_the_distances_of_what_is_present() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 20))
    present = np.arange(50) % 5 != 0
    x[~present] = np.nan
    found = pid.principal_components(x, present, 8, share=1.0)
    assert (found[~present] == 0).all()
    scaled = (x[present] - x[present].mean(0)) / x[present].std(0)
    np.testing.assert_allclose(found[present] @ found[present].T, scaled @ scaled.T, atol=1e-8)
    assert found.shape[1] == 3  # three directions hold everything
    strong = x[:, :1] + 1e-3 * rng.normal(size=(50, 9))
    assert pid.principal_components(strong, present, 8).shape == (50, 1)  # the rest is noise
    assert pid.principal_components(rng.normal(size=(50, 20)), present, 8).shape == (50, 8)
    x[present, 0] = np.inf
    with pytest.raises(DataError, match="infinite"):
        pid.principal_components(x, present, 8)


def test_pid_in_one_call() -> None:
    xor = np.zeros((2, 2, 2))
    for a in range(2):
        for b in range(2):
            xor[a, b, a ^ b] = 0.25
    assert pid.broja(xor) == pytest.approx({"R": 0.0, "U1": 0.0, "U2": 0.0, "S": 1.0}, abs=1e-4)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (2, 200))
    one_hot = [np.eye(2)[row] for row in bits]
    quick = {"discriminator_steps": 60, "alignment_steps": 5, "bootstrap": 0}
    found = pid.batch(*one_hot, bits[0], **quick)
    assert found["U1"] > 0.5 > max(found["R"], found["U2"], found["S"])
    assert found == pid.batch(*one_hot, bits[0], settings=BatchSettings(**quick))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not both"):
        pid.batch(*one_hot, bits[0], settings=BatchSettings(), seed=1)


def test_figures_survive_what_is_undefined(tmp_path: Path) -> None:
    nothing = [[None] * 3] * 3
    rows = [
        {
            "task": "t",
            "modality": "a",
            "protocol": "linear",
            "multimodal": {"n": 3, "auroc": {"value": None, "low": None, "high": None}},
        }
    ]
    agreement = [
        {"reference": "truth", "explanation": "x", "level": "sample", "spearman": None, "low": None, "high": None}
    ]
    made = {
        "competition": figures.competition(rows, ("a", "b", "c"), "t"),
        "synergy": figures.synergy(
            {"m": {"t": {"synergy": nothing, "null_q95": nothing}, "u": {"note": "too few"}}}, ("a", "b", "c")
        ),
        "agreement": figures.interpretability(agreement),
        "contribution": figures.contribution([[None, None, None]], [0.3, 0.3, 0.4], [], ("t",), ("a", "b", "c")),
    }
    for name, figure in made.items():
        save(figure, tmp_path, name, [{"a": 1}, {"b": None}])
        assert all((tmp_path / f"{name}.{kind}").is_file() for kind in ("png", "svg", "csv"))
        assert (tmp_path / f"{name}.csv").read_text() == "a,b\n1,\n,\n"


def test_plain_data_holds_no_nan() -> None:
    nested = {"a": np.array([1.0, np.nan]), "b": (np.float32(0.5), math.inf), 3: [np.int64(4), {"c": True}]}
    assert plain(nested) == {"a": [1.0, None], "b": [0.5, None], "3": [4, {"c": True}]}


def test_what_the_other_run_could_not_estimate_is_said_in_its_panel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    names = ("a", "b")

    def part(rows: int) -> Any:
        return SimpleNamespace(
            present=np.ones((rows, 2), dtype=bool),
            groups=np.arange(rows),
            representation="mtoe",
            predicted={"t": rng.integers(0, 2, rows), "rare": np.zeros(rows, dtype=int)},
            task={task: {name: rng.normal(size=(rows, 4)) for name in names} for task in ("t", "rare")},
        )

    config = SimpleNamespace(data=SimpleNamespace(dataset="embed"))
    run: Any = SimpleNamespace(folder=tmp_path, spec=SimpleNamespace(modalities=names), config=config)
    options = AnalysisOptions(tmp_path, permutations=0)
    collected: Any = SimpleNamespace(features=part(100))
    first = WORK["synergy"](Session(options, run, "other", {}, collected, part(200)))
    assert first["not_estimated"] == {"rare": {"note": "a single class"}}
    baseline = {"model": "other", "synergy": json.loads(json.dumps(first))}
    session = Session(options, run, "ours", baseline, collected, part(200))
    WORK["synergy"](session)
    drawn = (tmp_path / "figures" / "fig4_synergy.svg").read_text()
    assert drawn.count("<!-- a single class -->") == 2
