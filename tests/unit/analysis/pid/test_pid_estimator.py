"""The estimator for continuous sources: known tables, identities, null, oracle, patients, determinism, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.information import parts_of, patient_intervals, patient_split, permuted_labels
from m4oe_ds.analysis.pid.estimator import BatchSettings, Conditionals, _conditional_information, _sinkhorn, batch
from m4oe_ds.errors import ConfigError, DataError

REFERENCE = json.loads((Path(__file__).parent / "pid_reference.json").read_text(encoding="utf-8"))
CASES = {entry["name"]: entry for entry in REFERENCE["distributions"]}
QUICK = BatchSettings(alignment_steps=60, discriminator_steps=60, bootstrap=0)
SMALL_TOLERANCE = 0.1  # bits, at 1024 samples
SHARP = ("XOR", "RDN", "UNQ", "COPY_X1", "RDN_XOR")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(name: str, rows: int, *, seed: int = 0, noise: float | None = None) -> tuple[Any, Any, Any, Conditionals]:
    """Rows of a reference table: one-hot symbols, or fixed random 16-vectors plus noise; labels; true conditionals."""
    rng = np.random.default_rng(seed)
    p = np.array(CASES[name]["p_x1_x2_y"])
    p /= p.sum()
    a, b, y = np.unravel_index(rng.choice(p.size, rows, p=p.ravel()), p.shape)
    if noise is None:
        x1, x2 = np.eye(p.shape[0])[a], np.eye(p.shape[1])[b]
    else:
        x1, x2 = (
            rng.normal(size=(p.shape[axis], 16))[symbols] + noise * rng.normal(size=(rows, 16))
            for axis, symbols in ((0, a), (1, b))
        )
    single1, single2 = p.sum(1)[a], p.sum(0)[b]
    both = p[a, b]
    given = [table / table.sum(1, keepdims=True) for table in (single1, single2, both)]
    return x1, x2, y, Conditionals(*given)


def assert_near(parts: dict[str, float], name: str, tolerance: float) -> None:
    for letter, value in parts.items():
        assert value == pytest.approx(CASES[name]["bits"][letter], abs=tolerance), letter


@pytest.mark.parametrize("name", [*SHARP[:3], "RANDOM_4x4x2_a1"])
def test_known_tables_from_samples(name: str) -> None:
    x1, x2, y, _ = draw(name, 1024)
    result = batch(x1, x2, y, settings=BatchSettings(discriminator_steps=300, alignment_steps=40, bootstrap=0))
    assert_near(result.parts(), name, SMALL_TOLERANCE)
    if name == "XOR":
        assert result.synergy > 0.95
    if name == "UNQ":
        assert min(result.unique1, result.unique2) > 0.95
    raw = result.parts(clip=False)
    assert raw["R"] + raw["U1"] == pytest.approx(result.information1, abs=1e-5)
    assert raw["R"] + raw["U2"] == pytest.approx(result.information2, abs=1e-5)
    assert sum(raw.values()) == pytest.approx(result.total, abs=1e-5)


def test_noisy_embeddings_have_the_decomposition_of_their_symbols() -> None:
    x1, x2, y, _ = draw("XOR", 1024, noise=0.1)
    result = batch(x1, x2, y, settings=BatchSettings(discriminator_steps=300, alignment_steps=20, bootstrap=0))
    assert_near(result.parts(), "XOR", SMALL_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNQ", "RDN_XOR", "AND"])
def test_known_tables_at_full_size(name: str) -> None:
    x1, x2, y, _ = draw(name, 6144)
    result = batch(x1, x2, y, settings=BatchSettings(held_out=1 / 3, bootstrap=0))
    assert_near(result.parts(), name, 0.02 if name in SHARP else 0.08)


@pytest.mark.parametrize(
    ("name", "anchor"),
    [("SUM", "mean"), ("RANDOM_3x3x2_a3", "x1"), ("RANDOM_3x3x2_a3", "x2"), ("RDN_COND_INDEP_90_80", "mean")],
)
def test_true_conditionals(name: str, anchor: Any) -> None:
    x1, x2, y, truth = draw(name, 1024)
    settings = BatchSettings(anchor=anchor, bootstrap=0, alignment_steps=60)
    result = batch(x1, x2, y, settings=settings, conditionals=truth)
    assert_near(result.parts(), name, 0.06)
    assert result.stopped_at == {}
    assert result.marginal_error < 0.05


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (4, 1)])
def test_independent_noise_gives_nothing(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x1, x2 = rng.normal(size=(2, 1000, 32))
    result = batch(x1, x2, rng.integers(0, classes, 1000), settings=BatchSettings(alignment_steps=60, seed=seed))
    assert max(abs(value) for value in result.parts(clip=False).values()) < 0.02
    assert result.target_entropy == pytest.approx(np.log2(classes), abs=0.01)


def test_same_seed_same_numbers_and_global_state_untouched() -> None:
    x1, x2, y, _ = draw("RANDOM_3x3x2_a3", 300)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    settings = replace(QUICK, bootstrap=50, permutations=1, discriminator_steps=30, alignment_steps=10)
    first, second = (batch(x1, x2, y, settings=settings) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    other = batch(x1, x2, y, settings=replace(settings, seed=1))
    assert other.parts(clip=False) != first.parts(clip=False)


def test_null_and_interval_of_a_real_effect() -> None:
    x1, x2, y, _ = draw("XOR", 600)
    settings = BatchSettings(alignment_steps=10, discriminator_steps=300, permutations=2, bootstrap=100)
    result = batch(x1, x2, y, settings=settings)
    assert result.null is not None
    assert result.interval is not None
    assert [len(values) for values in result.null.values()] == [2] * 4
    largest = max(result.null["S"])
    assert 0 <= min(result.null["S"]) <= largest < 0.05
    low, high = result.interval["S"]
    assert low <= result.synergy <= high
    assert low > largest


def test_heldout_cross_entropy_option() -> None:
    x1, x2, y, truth = draw("RDN_COND_INDEP_90_80", 1024)
    settings = replace(QUICK, mi="heldout_ce", held_out=0.5, alignment_steps=5)
    result = batch(x1, x2, y, settings=settings, conditionals=truth)
    rows = patient_split(np.arange(1024), 0.5, settings.validation, settings.seed)
    prior = np.bincount(y[rows.train]) / len(rows.train)
    held = rows.held_out
    expected = np.mean(np.log2(np.asarray(truth.given_x1)[held, y[held]] / prior[y[held]]))
    assert result.information1 == pytest.approx(expected, abs=1e-6)
    soft = batch(x1, x2, y, settings=replace(settings, mi="soft"), conditionals=truth)
    assert soft.information1 != pytest.approx(expected, abs=1e-4)


def test_patients_never_straddle_a_split() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 60, 400)
    split = patient_split(patients, 0.33, 0.25, 3)
    sets = [set(patients[rows]) for rows in (split.train, split.validation, split.held_out)]
    assert sum(len(part) for part in sets) == len(set.union(*sets)) == 60
    assert sum(len(rows) for rows in (split.train, split.validation, split.held_out)) == 400
    x1, x2, y, _ = draw("XOR", 400)
    quick = replace(QUICK, discriminator_steps=10, alignment_steps=2)
    result = batch(x1, x2, y, patients=[f"p{code}" for code in patients], settings=quick)
    assert sum(result.samples) == 400


def test_patients_leak_when_ignored() -> None:
    """Labels are pure noise per patient and the features identify the patient: only the grouped split says zero."""
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(60), 15)
    y = rng.integers(0, 2, 60)[patients]
    x1, x2 = rng.normal(size=(2, 60, 16))[:, patients] + 0.05 * rng.normal(size=(2, 900, 16))
    settings = BatchSettings(alignment_steps=5, discriminator_steps=300, bootstrap=0)
    grouped, ignored = batch(x1, x2, y, patients=patients, settings=settings), batch(x1, x2, y, settings=settings)
    assert ignored.total > 0.7
    assert abs(grouped.total) < 0.3


def test_permuted_labels_keep_patients_together() -> None:
    rng = np.random.default_rng(2)
    patients = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5])
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    seen = set()
    for _ in range(50):
        shuffled = permuted_labels(labels, patients, rng)
        assert sorted(shuffled) == list(labels)
        pairs = shuffled[:8].reshape(4, 2)
        assert {tuple(pair) for pair in pairs} == {(0, 1), (2, 3), (4, 5), (6, 7)}
        seen.add(tuple(shuffled))
    assert len(seen) > 20


def test_sinkhorn_reaches_both_marginals_only_with_balanced_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand((3, 40, 40), generator=generator, dtype=torch.float64) * 4 - 2
    log1, log2 = ((2 * torch.randn((3, 40), generator=generator, dtype=torch.float64)).log_softmax(0) for _ in "12")
    u, v, error = _sinkhorn(logits, log1, log2, BatchSettings(sinkhorn_rounds=200), 1e-9)
    coupling = torch.exp(logits + u[..., None] + v[:, None, :])
    mass = (log1.exp().sum(1) + log2.exp().sum(1)) / 2
    assert error < 1e-9
    for sums, log_p in ((coupling.sum(2), log1), (coupling.sum(1), log2)):
        target = log_p.exp() * (mass / log_p.exp().sum(1))[:, None]
        torch.testing.assert_close(sums, target, atol=1e-8, rtol=0)
    _, _, error = _sinkhorn(logits, log1, log2, BatchSettings(sinkhorn_rounds=200, balance_mass=False), 1e-9)
    assert error > 1e-3


def test_sinkhorn_survives_vanishing_conditionals() -> None:
    logits = torch.zeros((2, 6, 6), requires_grad=True)
    p = torch.tensor([1.0, 1.0, 1.0, 1e-12, 1e-12, 1e-12])
    log_p = torch.log(torch.stack([p, 1 - p.clamp_max(1 - 1e-7)]))
    u, v, _ = _sinkhorn(logits, log_p, log_p, BatchSettings(), 1e-3)
    _conditional_information(logits, v, log_p).sum().backward()
    assert torch.isfinite(u).all()
    assert torch.isfinite(v).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_conditional_information_equals_its_definition() -> None:
    rng = np.random.default_rng(3)
    logits, other = rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 7))
    p = rng.dirichlet(np.ones(3), size=5).T
    q = np.exp(logits + other[:, None])
    q /= q.sum(2, keepdims=True)
    expected = np.zeros(5)
    for a in range(5):
        for c in range(7):
            mixture = sum(q[k, a, c] * p[k, a] for k in range(3))
            expected[a] += sum(p[k, a] * q[k, a, c] * np.log(q[k, a, c] / mixture) for k in range(3))
    got = _conditional_information(torch.tensor(logits), torch.tensor(other), torch.tensor(np.log(p)))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_intervals_widen_with_correlated_rows() -> None:
    rng = np.random.default_rng(4)
    contributions = np.repeat(rng.normal(size=(50, 4)), 10, axis=0)
    alone = patient_intervals(contributions, np.arange(500), 400, np.random.default_rng(0))
    grouped = patient_intervals(contributions, np.repeat(np.arange(50), 10), 400, np.random.default_rng(0))
    assert alone is not None
    assert grouped is not None
    assert np.diff(grouped["S"])[0] > 2 * np.diff(alone["S"])[0]
    assert parts_of(np.array([1.0, 0.5, 2.0, 1.25])) == (0.25, 0.75, 0.25, 0.75)


def test_constant_features_and_unused_class_are_harmless() -> None:
    y = np.random.default_rng(5).choice([0, 2], 200)
    result = batch(
        np.ones((200, 3)), np.eye(3)[y], y, settings=replace(QUICK, discriminator_steps=200, alignment_steps=20)
    )
    assert result.information1 == pytest.approx(0.0, abs=0.02)
    assert result.unique2 > 0.8


GOOD = (np.ones((64, 2)), np.ones((64, 2)), np.arange(64) % 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((63, 2)), *GOOD[1:]), r"x1: shape \(63, 2\)"),
        ((GOOD[0], np.ones(64), GOOD[2]), r"x2: shape \(64,\)"),
        ((np.full((64, 2), np.inf), *GOOD[1:]), "NaN or infinite"),
        ((*GOOD[:2], GOOD[2] - 1), "integers >= 0"),
        ((*GOOD[:2], GOOD[2].astype(float)), "integers >= 0"),
        ((*GOOD[:2], np.zeros(64, int)), "single class"),
        (tuple(array[:12] for array in GOOD), "every split needs"),
    ],
)
def test_bad_data(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        batch(*arguments, settings=QUICK)


def test_bad_patients_and_conditionals() -> None:
    with pytest.raises(DataError, match="one id per row"):
        batch(*GOOD, patients=np.arange(3), settings=QUICK)
    half = np.full((64, 2), 0.5)
    for wrong, message in ((half[:3], "shape"), (half * 2, "not distributions"), (half[:, :1], "shape")):
        with pytest.raises(DataError, match=message):
            batch(*GOOD, settings=QUICK, conditionals=Conditionals(half, wrong, half))
    with pytest.raises(ConfigError, match="permutation null"):
        batch(*GOOD, settings=replace(QUICK, permutations=2), conditionals=Conditionals(half, half, half))


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 0},
        {"embedding": 1},
        {"held_out": 1.0},
        {"permutations": -1},
        {"anchor": "x3"},
        {"mi": "hard"},
        {"logit_scale": 10.0},
    ],
)
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BatchSettings(**options)
