"""Synergy matrices: planted interactions, missing data, balance, null, patterns, rows and merging."""

from __future__ import annotations

import csv
import io
import logging
from typing import Any

import numpy as np
import pytest

from m4oe_ds.analysis.pid.estimator import BatchSettings
from m4oe_ds.analysis.pid.synergy import PairSynergy, SynergyReport, SynergySettings, synergy_matrices
from m4oe_ds.errors import ConfigError, DataError

QUICK_NULL = BatchSettings(permutations=5)
BROJA = SynergySettings(estimator="broja", clusters=2, components=2, batch=QUICK_NULL)
MODALITIES = ("cc", "mlo", "us")


@pytest.fixture(scope="module")
def planted() -> dict[str, Any]:
    """Three modalities that each show one bit; ``joint`` is the XOR of the first two, ``single`` the third's bit."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (3, 600))
    features = {
        name: rng.normal(size=(2, 5))[row] + 0.05 * rng.normal(size=(600, 5))
        for name, row in zip(MODALITIES, bits, strict=True)
    }
    labels = {"joint": bits[0] ^ bits[1], "single": bits[2].copy()}
    return {"features": features, "labels": labels, "patients": [f"p{i // 2}" for i in range(600)]}


@pytest.fixture(scope="module")
def report(planted: dict[str, Any]) -> SynergyReport:
    return synergy_matrices(**planted, model="m4oe", target="label", settings=BROJA)


def test_planted_synergy_appears_in_its_cell_only(report: SynergyReport) -> None:
    matrix = report.matrix("joint")
    assert matrix.shape == (3, 3)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isnan(np.diag(matrix)).all()
    assert matrix[0, 1] > 0.95
    assert max(matrix[0, 2], matrix[1, 2]) < 0.05
    assert np.nanmax(report.matrix("single")) < 0.05
    assert report.matrix("joint", "share_of_entropy")[0, 1] == pytest.approx(1.0, abs=0.02)
    pairs = {(pair.task, pair.modality1, pair.modality2): pair for pair in report.pairs}
    assert len(pairs) == 6
    assert pairs["single", "cc", "us"].unique2 > 0.95
    assert pairs["joint", "cc", "mlo"].share_of_information == pytest.approx(1.0, abs=0.02)


def test_null_stands_next_to_every_value(report: SynergyReport) -> None:
    mean, q95 = report.matrix("joint", "null_mean"), report.matrix("joint", "null_q95")
    above = ~np.isnan(q95)
    assert above.sum() == 6
    assert (mean[above] <= q95[above]).all()
    assert np.nanmax(q95) < 0.05 < report.matrix("joint")[0, 1]
    assert {pair.permutations for pair in report.pairs} == {5}


def test_network_estimator_finds_the_planted_pair(planted: dict[str, Any]) -> None:
    features = {name: planted["features"][name] for name in ("cc", "mlo")}
    settings = SynergySettings(
        batch=BatchSettings(permutations=1, bootstrap=50, alignment_steps=10, discriminator_steps=400)
    )
    labels = {"joint": planted["labels"]["joint"]}
    (pair,) = synergy_matrices(features, labels, planted["patients"], settings=settings).pairs
    assert pair.estimator == "batch"
    assert pair.target == "prediction"
    assert pair.synergy > 0.8
    assert pair.low <= pair.synergy <= pair.high
    assert pair.null_q95 < 0.1


def test_patterns(report: SynergyReport) -> None:
    def made(task: str, values: list[float]) -> tuple[PairSynergy, ...]:
        template = report.pairs[0].__dict__
        names = [("cc", "mlo"), ("cc", "us"), ("mlo", "us")]
        return tuple(
            PairSynergy(**(template | {"task": task, "modality1": a, "modality2": b, "synergy": value}))
            for (a, b), value in zip(names, values, strict=True)
        )

    made_up = SynergyReport(MODALITIES, made("flat", [0.2, 0.2, 0.2]) + made("peak", [0.4, 0.0, 0.0]))
    assert made_up.pattern("peak").tolist() == [0.4, 0.0, 0.0]
    assert made_up.pattern_entropy("flat") == pytest.approx(1.0)
    assert made_up.pattern_entropy("peak") == pytest.approx(0.0)
    assert made_up.pattern_cosine("flat", "peak") == pytest.approx(1 / np.sqrt(3))
    assert made_up.pattern_cosine("peak", "peak") == pytest.approx(1.0)


def test_missing_labels_and_modalities_are_left_out_and_counted(planted: dict[str, Any]) -> None:
    labels = {"joint": planted["labels"]["joint"].copy()}
    labels["joint"][:100] = -1
    features = {name: values.copy() for name, values in planted["features"].items()}
    present = {"mlo": np.arange(600) < 500}
    features["mlo"][500:] = np.nan  # must not be looked at
    result = synergy_matrices(features, labels, planted["patients"], present=present, settings=BROJA)
    pair = result.pairs[0]
    assert (pair.modality1, pair.modality2) == ("cc", "mlo")
    assert (pair.samples, pair.missing_label, pair.missing_modality, pair.patients) == (400, 100, 100, 200)
    assert pair.synergy > 0.9
    assert result.pairs[1].samples == 500


def test_unusable_pairs_are_counted_under_a_reason(planted: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    few, constant = np.full(600, -1), np.zeros(600, int)
    few[:20] = 1
    labels = {"few": few, "constant": constant, "joint": planted["labels"]["joint"]}
    with caplog.at_level(logging.WARNING, logger="m4oe_ds.analysis.pid.synergy"):
        result = synergy_matrices(planted["features"], labels, planted["patients"], settings=BROJA)
    assert result.skip_counts == {"too few rows with label and both modalities": 3, "a single class": 3}
    assert "3 pairs without synergy estimate: a single class" in caplog.text
    assert {pair.task for pair in result.pairs} == {"joint"}
    assert np.isnan(result.matrix("few")).all()
    assert np.isnan(result.pattern_entropy("few"))


def test_balancing_restores_the_scale_of_a_rare_class(planted: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    joint = planted["labels"]["joint"]
    keep = (joint == 0) | (rng.random(600) < 0.15)
    labels = {"rare": np.where(keep, joint, -1)}
    features = {name: planted["features"][name] for name in ("cc", "mlo")}
    plain = synergy_matrices(features, labels, planted["patients"], settings=BROJA).pairs[0]
    settings = SynergySettings(estimator="broja", clusters=2, components=2, batch=QUICK_NULL, class_balanced=True)
    balanced = synergy_matrices(features, labels, planted["patients"], settings=settings).pairs[0]
    assert plain.target_entropy < 0.7
    assert plain.synergy <= plain.target_entropy + 1e-9
    assert balanced.target_entropy == pytest.approx(1.0, abs=1e-3)
    assert balanced.synergy > plain.synergy + 0.2


def test_rows_are_flat_and_reproducible(planted: dict[str, Any], report: SynergyReport) -> None:
    rows = report.to_rows()
    assert len(rows) == 6
    assert len({tuple(row) for row in rows}) == 1
    assert all(isinstance(value, str | int | float) for row in rows for value in row.values())
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    back = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert float(back[0]["synergy"]) == rows[0]["synergy"]
    assert {"model", "task", "synergy", "share_of_entropy", "null_mean", "null_q95"} <= set(back[0])
    assert "p0" not in text.getvalue()
    again = synergy_matrices(**planted, model="m4oe", target="label", settings=BROJA)
    assert [row["null_q95"] for row in again.to_rows()] == [row["null_q95"] for row in rows]


def test_merging_models(report: SynergyReport, planted: dict[str, Any]) -> None:
    other = synergy_matrices(**planted, model="late_fusion", settings=BROJA)
    both = report.merged(other)
    assert len(both.pairs) == 12
    with pytest.raises(ConfigError, match="several models"):
        both.matrix("joint")
    np.testing.assert_array_equal(both.matrix("joint", model="late_fusion"), other.matrix("joint"))
    with pytest.raises(DataError, match="twice"):
        report.merged(report)
    with pytest.raises(DataError, match="different modalities"):
        report.merged(SynergyReport(("cc", "us"), ()))


def test_questions_without_answer(report: SynergyReport) -> None:
    with pytest.raises(ConfigError, match="no pair of task"):
        report.matrix("age")
    with pytest.raises(ConfigError, match="not symmetric"):
        report.matrix("joint", "unique1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"cc": np.ones((600, 2))}}, "1 modalities"),
        ({"features": {"cc": np.ones((600, 2)), "us": np.ones((599, 2))}}, r"features\['us'\]"),
        ({"labels": {"joint": np.full(600, -2)}}, r"labels\['joint'\]"),
        ({"labels": {"joint": np.zeros(600)}}, r"labels\['joint'\]"),
        ({"present": {"ct": np.ones(600, bool)}}, r"present\['ct'\]"),
        ({"present": {"cc": np.ones(600)}}, r"present\['cc'\]"),
    ],
)
def test_bad_input(planted: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        synergy_matrices(**(planted | change), settings=BROJA)


@pytest.mark.parametrize("options", [{"estimator": "dit"}, {"clusters": 1}, {"min_samples": 0}])
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SynergySettings(**options)
