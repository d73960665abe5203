"""I(M;E|T) and its gradient against the values of ``oracles/cmi_reference.json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m4oe_ds.losses import conditional_mutual_information
from m4oe_ds.losses.mutual_information import information, modality_expert_probability

SOURCES = ["dispatch", "gate", "joint", "combine"]
AGGREGATES = ["batch", "sample"]
F64, F32 = 1e-9, 1e-5  # absolute tolerances of the reference file

_CASES = json.loads((Path(__file__).parents[2] / "oracles" / "cmi_reference.json").read_text())["cases"]
NAMES = {kind: [case["name"] for case in _CASES if case["kind"] == kind] for kind in ("tensor", "logits")}


@pytest.fixture
def case(request: pytest.FixtureRequest, cmi_reference: dict) -> dict:
    """The reference case named by the parameter."""
    return next(entry for entry in cmi_reference["cases"] if entry["name"] == request.param)


def tensor(values: object, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def entropy(probability: Tensor, dims: tuple[int, ...]) -> Tensor:
    """-sum p log p over ``dims`` with 0 log 0 = 0."""
    return -torch.special.xlogy(probability, probability).sum(dims)


def inputs_of(case: dict, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict]:
    prior = tensor(case["P_T"]) if case["P_T_source"] == "given" else None
    options = {"label_mask": tensor(case["label_mask_bk"]), "task_prior": prior}
    return tensor(case["logits_btjk"], dtype), torch.tensor(case["token_modality_t"]), options


def test_the_reference_file_is_complete() -> None:
    assert (len(NAMES["tensor"]), len(NAMES["logits"])) == (7, 8)


@pytest.mark.parametrize("case", NAMES["tensor"], indirect=True)
def test_reference_tables(case: dict) -> None:
    expected, probability, prior = case["expected"], tensor(case["P_M_E_given_T"]), tensor(case["P_T"])
    per_task = information(probability)
    torch.testing.assert_close(per_task, tensor(expected["I_per_task_nats"]), rtol=0, atol=F64)
    assert (prior * per_task).sum().item() == pytest.approx(expected["I_nats"], abs=F64)
    assert per_task.sum().item() == pytest.approx(expected["I_sum_over_tasks_nats"], abs=F64)
    h_m = (prior * entropy(probability.sum(1), (0,))).sum().item()
    h_e = (prior * entropy(probability.sum(0), (0,))).sum().item()
    h_both = (prior * entropy(probability, (0, 1))).sum().item()
    assert (h_m, h_e, h_both - h_e) == pytest.approx(
        (expected["H_M_given_T_nats"], expected["H_E_given_T_nats"], expected["H_M_given_E_T_nats"]), abs=F64
    )
    # I(M;E|T) = H(M|T) - H(M|E,T) = H(E|T) - H(E|M,T)
    assert (prior * per_task).sum().item() == pytest.approx(h_m - (h_both - h_e), abs=1e-10)
    torch.testing.assert_close(information(probability.float()), per_task, rtol=0, atol=F32)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", NAMES["logits"], indirect=True)
def test_reference_probabilities(case: dict, source: str) -> None:
    """Marginals, entropies and information of each task from the averaged P(M,E|T)."""
    logits, modality, options = inputs_of(case)
    per_sample = modality_expert_probability(logits, modality, int(modality.max()) + 1, source=source)
    torch.testing.assert_close(per_sample.sum((1, 2)), torch.ones(logits.shape[0], logits.shape[3]).double())
    labels = options["label_mask"]
    has_label = labels.sum(0) > 0
    probability = torch.einsum("bk,bijk->ijk", labels / labels.sum(0).clamp_min(1), per_sample)
    expected = case["expected"][source]["batch"]
    for axis, key in ((1, "P_M_given_T"), (0, "P_E_given_T")):  # the file fills an unlabelled task with a constant
        marginal, listed = probability.sum(axis), tensor(expected[key])
        torch.testing.assert_close(marginal[:, has_label], listed[:, has_label], rtol=0, atol=F64)
    prior = tensor(case["P_T"])
    torch.testing.assert_close(information(probability), tensor(expected["I_per_task_nats"]), rtol=0, atol=F64)
    h_m = (prior * entropy(probability.sum(1), (0,))).sum().item()
    h_e = (prior * entropy(probability.sum(0), (0,))).sum().item()
    h_both = (prior * entropy(probability, (0, 1))).sum().item()
    assert (h_m, h_e, h_both - h_e) == pytest.approx(
        (expected["H_M_given_T_nats"], expected["H_E_given_T_nats"], expected["H_M_given_E_T_nats"]), abs=F64
    )
    value = conditional_mutual_information(logits, modality, source=source, **options).item()
    assert value == pytest.approx(h_m + h_e - h_both, abs=1e-10)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", NAMES["logits"], indirect=True)
def test_reference_information_of_each_sample_and_task(case: dict, source: str) -> None:
    logits, modality, options = inputs_of(case)
    each = information(modality_expert_probability(logits, modality, int(modality.max()) + 1, source=source))  # [B, p]
    labels = options["label_mask"]
    mean = (labels * each).sum(0) / labels.sum(0).clamp_min(1)
    torch.testing.assert_close(mean, tensor(case["expected"][source]["sample"]["I_per_task_nats"]), rtol=0, atol=F64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, F64), (torch.float32, F32)], ids=["f64", "f32"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", NAMES["logits"], indirect=True)
def test_reference_values(case: dict, source: str, aggregate: str, dtype: torch.dtype, tolerance: float) -> None:
    logits, modality, options = inputs_of(case, dtype)
    expected = case["expected"][source][aggregate]
    for task_weight, key in (("prior", "I_nats"), ("sum", "I_sum_over_tasks_nats")):
        value = conditional_mutual_information(
            logits, modality, source=source, aggregate=aggregate, task_weight=task_weight, **options
        )
        assert value.dtype == dtype
        assert value.shape == ()
        assert value.item() == pytest.approx(expected[key], abs=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, F64), (torch.float32, F32)], ids=["f64", "f32"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", NAMES["logits"], indirect=True)
def test_reference_gradients(case: dict, source: str, aggregate: str, dtype: torch.dtype, tolerance: float) -> None:
    expected = case["expected"][source][aggregate]
    key = next((name for name in expected if name.startswith("grad_I_wrt_logits")), None)
    logits, modality, options = inputs_of(case, dtype)
    logits.requires_grad_()
    conditional_mutual_information(logits, modality, source=source, aggregate=aggregate, **options).backward()
    assert logits.grad.isfinite().all()
    if key is None:  # no gradient in the file: central differences here
        if dtype != torch.float64:
            return
        direction = torch.randn_like(logits)
        step, options = 1e-5, {**options, "source": source, "aggregate": aggregate}
        with torch.no_grad():
            up = conditional_mutual_information(logits + step * direction, modality, **options)
            down = conditional_mutual_information(logits - step * direction, modality, **options)
        slope = (logits.grad * direction).sum().item()
        # third-order term: step^2 * |direction|^3, and 1e-16 / step of rounding
        assert slope == pytest.approx(((up - down) / (2 * step)).item(), abs=2e-8)
        return
    if "finite_difference" in key:
        tolerance = max(tolerance, 2e-8)  # accuracy of the differences in the file
    torch.testing.assert_close(logits.grad.double(), tensor(expected[key]), rtol=0, atol=tolerance)
