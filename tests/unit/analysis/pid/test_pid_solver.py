"""The exact decomposition: reference tables, an independent brute-force minimum, invariances and bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import entropy as scipy_entropy

from m4oe_ds.analysis.information import entropy, mutual_information, normalised_entropy
from m4oe_ds.analysis.pid.solver import broja, cluster_features, count_table
from m4oe_ds.errors import ConfigError, DataError

REFERENCE = json.loads((Path(__file__).parent / "pid_reference.json").read_text(encoding="utf-8"))
CASES = {entry["name"]: entry for entry in REFERENCE["distributions"]}
TOLERANCE = REFERENCE["tolerance_bits"]["convex_program"]
NAMED = [name for name in CASES if not name.startswith("RANDOM")]


def random_table(seed: int, shape: tuple[int, int, int], concentration: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(int(np.prod(shape)), concentration)).reshape(shape)


def brute_force_binary(p: np.ndarray) -> float:
    """I_Q of a 2x2x2 table in bits: given y, q(.,.|y) has one free number, so minimise over two numbers in turn."""
    p1, p2 = p.sum(1), p.sum(0)
    low = [max(0.0, p1[0, y] + p2[0, y] - p1[:, y].sum()) for y in (0, 1)]
    high = [min(p1[0, y], p2[0, y]) for y in (0, 1)]

    def information(t0: float, t1: float) -> float:
        q = np.zeros((2, 2, 2))
        for y, t in enumerate((t0, t1)):
            rest = p1[:, y].sum() - p1[0, y] - p2[0, y] + t
            q[..., y] = [[t, p1[0, y] - t], [p2[0, y] - t, rest]]
        q = np.clip(q, 0.0, None)
        h = [scipy_entropy(part.ravel(), base=2) for part in (q.sum(2), q.sum((0, 1)), q)]
        return float(h[0] + h[1] - h[2])

    def inner(t0: float) -> float:
        return float(
            minimize_scalar(
                lambda t1: information(t0, t1), bounds=(low[1], high[1]), method="bounded", options={"xatol": 1e-10}
            ).fun
        )

    return float(minimize_scalar(inner, bounds=(low[0], high[0]), method="bounded", options={"xatol": 1e-10}).fun)


@pytest.mark.parametrize("name", CASES)
def test_reference_tables(name: str) -> None:
    case = CASES[name]
    result = broja(case["p_x1_x2_y"])
    for letter, value in result.parts().items():
        assert value == pytest.approx(case["bits"][letter], abs=TOLERANCE), letter
    informations = case["information_bits"]
    assert result.information1 == pytest.approx(informations["I_X1_Y"], abs=1e-7)
    assert result.information2 == pytest.approx(informations["I_X2_Y"], abs=1e-7)
    assert result.total == pytest.approx(informations["I_X1X2_Y"], abs=1e-7)
    assert result.duality_gap < 1e-6


@pytest.mark.parametrize("name", NAMED)
def test_alternating_solver_within_2000_sweeps(name: str) -> None:
    result = broja(CASES[name]["p_x1_x2_y"], solver="alternating", tolerance=1e-5, max_iterations=2000)
    for letter, value in result.parts().items():
        assert value == pytest.approx(CASES[name]["bits"][letter], abs=TOLERANCE), letter
    assert result.iterations <= 2000
    assert result.duality_gap <= 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_binary_tables_against_brute_force(seed: int) -> None:
    p = random_table(seed, (2, 2, 2), 0.7)
    result = broja(p)
    i_q = result.redundancy + result.unique1 + result.unique2
    assert i_q == pytest.approx(brute_force_binary(p), abs=1e-5)


@pytest.mark.parametrize(
    ("seed", "shape", "concentration"),
    [(0, (3, 4, 2), 1.0), (1, (6, 6, 4), 0.2), (2, (1, 3, 2), 1.0), (3, (4, 3, 1), 1.0), (4, (8, 8, 3), 0.05)],
)
def test_identities_feasibility_and_gap(seed: int, shape: tuple[int, int, int], concentration: float) -> None:
    p = random_table(seed, shape, concentration)
    result = broja(p)
    parts = result.parts()
    assert min(parts.values()) >= 0
    assert parts["R"] + parts["U1"] == pytest.approx(mutual_information(p.sum(1)), abs=1e-6)
    assert parts["R"] + parts["U2"] == pytest.approx(mutual_information(p.sum(0)), abs=1e-6)
    assert sum(parts.values()) == pytest.approx(result.total, abs=1e-6)
    np.testing.assert_allclose(result.coupling.sum(1), p.sum(1), atol=1e-10)
    np.testing.assert_allclose(result.coupling.sum(0), p.sum(0), atol=1e-10)
    assert (result.coupling >= 0).all()
    # the minimum lies below every feasible table, here p itself and the conditionally independent one
    i_q = result.total - parts["S"]
    independent = p.sum(1)[:, None] * p.sum(0)[None] / p.sum((0, 1))
    for feasible in (p, independent):
        assert i_q <= mutual_information(feasible.reshape(-1, shape[2])) + 1e-6
    assert result.duality_gap < 1e-6


def test_the_two_solvers_agree_on_random_tables() -> None:
    for seed in range(5):
        p = random_table(100 + seed, (3, 3, 2), 0.5)
        first, second = broja(p), broja(p, solver="alternating", tolerance=1e-6)
        assert first.synergy == pytest.approx(second.synergy, abs=1e-5)


def test_swapping_sources_and_relabelling() -> None:
    p = random_table(5, (3, 4, 3), 0.5)
    result, swapped = broja(p).parts(), broja(p.transpose(1, 0, 2)).parts()
    assert result["U1"] == pytest.approx(swapped["U2"], abs=1e-6)
    assert result["S"] == pytest.approx(swapped["S"], abs=1e-6)
    shuffled = broja(p[::-1, [2, 0, 3, 1]][:, :, [1, 2, 0]]).parts()
    assert shuffled == pytest.approx(result, abs=1e-6)


def test_unused_symbols_change_nothing() -> None:
    p = random_table(6, (3, 3, 2))
    padded = np.zeros((5, 4, 4))
    padded[np.ix_([0, 2, 4], [0, 1, 3], [1, 3])] = p
    result = broja(padded)
    assert result.parts() == pytest.approx(broja(p).parts(), abs=1e-7)
    assert result.coupling.shape == padded.shape
    assert result.coupling[1].sum() == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.5, 0.5]], "2 axes, expected 3"),
        (np.full((2, 2, 2), 0.2), "sum to 1.6"),
        (np.array([[[1.5, -0.5]]]), "negative probability"),
        (np.array([[[np.nan, 1.0]]]), "NaN or infinite"),
        (np.zeros((2, 0, 2)), "no cells"),
        ([[[0.5], [0.25, 0.25]]], "not a rectangular array"),
        ([[["a"]]], "not a rectangular array"),
    ],
)
def test_invalid_tables(table: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        broja(table)


def test_invalid_options() -> None:
    p = random_table(7, (2, 2, 2))
    with pytest.raises(ConfigError, match="unknown solver"):
        broja(p, solver="scs")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tolerance"):
        broja(p, tolerance=0.0)


def test_running_out_of_iterations_shows_in_gap_and_log(caplog: pytest.LogCaptureFixture) -> None:
    p = CASES["AND"]["p_x1_x2_y"]
    with caplog.at_level(logging.WARNING, logger="m4oe_ds.analysis.pid.solver"):
        result = broja(p, max_iterations=3)
    assert result.duality_gap > 1e-3
    assert "duality gap" in caplog.text
    # the gap is a bound on the true error
    assert abs(result.synergy - CASES["AND"]["bits"]["S"]) <= result.duality_gap


def test_entropies() -> None:
    assert entropy([0.25] * 4) == 2.0
    assert entropy([1.0, 0.0]) == 0.0
    p = random_table(9, (3, 4, 1))[..., 0]
    expected = scipy_entropy(p.sum(1), base=2) + scipy_entropy(p.sum(0), base=2) - scipy_entropy(p.ravel(), base=2)
    assert mutual_information(p) == pytest.approx(expected, abs=1e-12)
    assert mutual_information(np.outer([0.3, 0.7], [0.1, 0.9])) == pytest.approx(0.0, abs=1e-15)
    assert normalised_entropy([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert normalised_entropy([5.0, 0.0]) == 0.0
    assert np.isnan(normalised_entropy([0.0, 0.0]))
    with pytest.raises(DataError):
        normalised_entropy([-1.0, 2.0])


def embedded(rng: np.random.Generator, symbols: np.ndarray, dim: int = 6) -> np.ndarray:
    return rng.normal(size=(symbols.max() + 1, dim))[symbols] + 0.05 * rng.normal(size=(len(symbols), dim))


def test_table_from_decodable_features_gives_the_decomposition_of_the_symbols() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.integers(0, 2, (2, 800))
    codes = [cluster_features(embedded(rng, symbols), clusters=2, components=3) for symbols in (a, b)]
    p = count_table(codes[0], codes[1], a ^ b)
    counts = np.zeros((2, 2, 2))
    np.add.at(counts, (a, b, a ^ b), 1 / 800)
    assert p.sum() == pytest.approx(1.0)
    assert broja(p).parts() == pytest.approx(broja(counts).parts(), abs=1e-6)
    assert broja(p).synergy > 0.95


def test_fine_clustering_of_noise_warns_and_shows_its_bias(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(11)
    x1, x2, y = rng.normal(size=(400, 4)), rng.normal(size=(400, 4)), rng.integers(0, 2, 400)
    with caplog.at_level(logging.WARNING):
        fine = broja(count_table(cluster_features(x1, clusters=15), cluster_features(x2, clusters=15), y)).synergy
    assert "biased upwards" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        coarse = broja(count_table(cluster_features(x1, clusters=3), cluster_features(x2, clusters=3), y)).synergy
    assert "biased upwards" not in caplog.text
    assert fine > 0.2
    assert coarse < 0.05


@pytest.mark.parametrize("x", [np.ones(6), np.full((6, 2), np.nan), np.ones((1, 2)), np.ones((6, 0))])
def test_bad_features(x: np.ndarray) -> None:
    with pytest.raises(DataError):
        cluster_features(x, clusters=2)


@pytest.mark.parametrize("y", [[0, 1], [0, 1, -1], [0.0, 1.0, 1.0], []])
def test_bad_columns(y: list[float]) -> None:
    with pytest.raises(DataError):
        count_table([0, 1, 0], [0, 0, 1], np.array(y))


def test_constant_features_are_one_symbol() -> None:
    assert set(cluster_features(np.ones((9, 3)), clusters=3)) == {0}
