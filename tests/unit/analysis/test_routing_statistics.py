"""Routing analyses against the oracle file, whole and streamed in parts; views of layers without task slots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.routing_statistics import (
    RoutingSums,
    expert_dependency,
    gini,
    hoyer,
    jensen_shannon,
    routing_view,
    view_of,
)
from m4oe_ds.errors import DataError
from m4oe_ds.layers.routing import Routing
from m4oe_ds.models import build, spec_for
from tests.distributed import problem

EXACT = {"rtol": 0, "atol": 1e-9}  # the tolerance of the oracle file in float64


def logits_cases(reference: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in reference["cases"] if case["kind"] == "logits"]


def specification(modalities: int, tasks: int) -> Any:
    return SimpleNamespace(
        modalities=tuple(f"m{i}" for i in range(modalities)), task_names=tuple(f"t{k}" for k in range(tasks))
    )


def summed(case: dict[str, Any], parts: int) -> tuple[dict[str, Any], Any]:
    """Sums of a case streamed in ``parts`` batches, with a padding sample in each; and the view of the whole."""
    logits = torch.tensor(case["logits_btjk"], dtype=torch.float64)
    of_token = torch.tensor(case["token_modality_t"])
    mask = torch.tensor(case["label_mask_bk"]).bool()
    spec = specification(int(of_token.max()) + 1, logits.shape[3])
    sums = RoutingSums(spec)
    for rows in torch.arange(len(logits)).chunk(parts):
        padded = torch.cat([logits[rows], 7 * torch.randn_like(logits[:1])])
        view = view_of("mtoe", Routing(padded), of_token, spec.task_names, len(spec.modalities))
        valid = torch.tensor([True] * len(rows) + [False])
        sums.add(view, valid, torch.cat([mask[rows], torch.ones_like(mask[:1])]))
    return sums.result(), view_of("mtoe", Routing(logits), of_token, spec.task_names, len(spec.modalities))


@pytest.mark.parametrize("parts", [1, 2])
def test_every_value_of_the_oracle(cmi_reference: dict[str, Any], parts: int) -> None:
    cases = logits_cases(cmi_reference)
    labelled = 0
    assert len(cases) >= 8
    for case in cases:
        expected = case["analyses"]
        found, view = summed(case, parts)
        np.testing.assert_allclose(view.mass[0], expected["modality_weight_in_slots_sample0_W_ijk"], **EXACT)
        np.testing.assert_allclose(
            view.contribution().transpose(1, 2), expected["contribution_per_sample_bik"], err_msg=case["name"], **EXACT
        )
        for name, key in (
            ("utilisation_ij", "utilisation_ij"),
            ("utilisation_i", "utilisation_i"),
            ("expert_mass_jk", "combine_expert_task_mass_jk"),
            ("p_expert_given_task_jk", "P_E_given_T_from_combine_jk"),
            ("sparsity_entropy_k", "sparsity_normalised_entropy_k"),
            ("sparsity_hoyer_k", "sparsity_hoyer_k"),
            ("sparsity_gini_k", "sparsity_gini_k"),
        ):
            np.testing.assert_allclose(found[name], expected[key], err_msg=f"{case['name']} {name}", **EXACT)
        population = np.array(expected["contribution_population_ik"]).T
        np.testing.assert_allclose(found["contribution_ki"], population, err_msg=case["name"], **EXACT)
        if np.array(case["label_mask_bk"]).all():  # the loss averages over labelled samples, the analysis over all
            information = case["expected"]["dispatch"]["batch"]["I_per_task_nats"]
            np.testing.assert_allclose(found["information_k"], information, err_msg=case["name"], **EXACT)
            labelled += 1
    assert labelled >= 4


def test_sparsity_of_extremes() -> None:
    one, even = np.eye(5)[2], np.full(5, 0.2)
    assert hoyer(one) == pytest.approx(1.0)
    assert hoyer(even) == pytest.approx(0.0, abs=1e-12)
    assert gini(one) == pytest.approx(0.8)
    assert gini(even) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan([hoyer([0.0, 0.0]), gini([0.0, 0.0]), hoyer([1.0]), gini([1.0])]).all()
    assert jensen_shannon(one, np.eye(5)[0]) == pytest.approx(1.0)
    assert jensen_shannon(even, even) == 0.0


def test_tasks_with_experts_of_their_own_are_fully_apart() -> None:
    found = expert_dependency(np.eye(4)[:, :3] * [1.0, 5.0, 0.1])
    assert found["task_divergence_bits"] == pytest.approx(1.0)
    np.testing.assert_allclose(found["sparsity_entropy_k"], 0.0, atol=1e-12)
    assert expert_dependency(np.ones((4, 3)))["task_divergence_bits"] == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(expert_dependency(np.ones((4, 1)))["task_divergence_bits"])
    with pytest.raises(DataError, match="below 0"):
        expert_dependency(-np.ones((2, 2)))


def test_masked_tokens_neither_count_nor_contribute() -> None:
    logits = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    of_token = torch.tensor([0, 0, 1, 1, 2, 2])
    spec = specification(3, 2)
    sums = RoutingSums(spec)
    everyone = torch.ones(2, dtype=torch.bool)
    sums.add(view_of("mtoe", Routing(logits, mask), of_token, spec.task_names, 3), everyone, mask[:, :2])
    total = 0.0
    for t in range(6):
        for b in range(2):
            if mask[b, t]:
                total = total + logits[b, t].flatten().softmax(0).view(3, 2)
    np.testing.assert_allclose(sums.result()["expert_mass_jk"], total / 10, **EXACT)


def test_shared_slots_give_one_answer_for_all_tasks() -> None:
    logits = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    of_token = torch.tensor([0, 1, 0, 1, 1])
    found = view_of("tower.0", Routing(logits), of_token, (), 2).contribution()
    assert found.shape == (2, 1, 2)
    for b in range(2):
        dispatch, combine = logits[b].softmax(0), logits[b].flatten(1).softmax(1).view(5, 3, 2)
        use = combine.sum(0) / combine.sum()
        for i in range(2):
            expected = sum(
                use[j, k] * dispatch[t, j, k] for t in range(5) if of_token[t] == i for j in range(3) for k in range(2)
            )
            assert float(found[b, 0, i]) == pytest.approx(float(expected), abs=1e-12)
    sums = RoutingSums(specification(2, 7))
    everyone = torch.ones(2, dtype=torch.bool)
    sums.add(view_of("tower.0", Routing(logits), of_token, (), 2), everyone, torch.zeros(2, 7, dtype=torch.bool))
    assert sums.result()["slots"] == "shared"
    np.testing.assert_allclose(sums.result()["contribution_ki"], found.mean(0), **EXACT)


@pytest.mark.parametrize(
    ("overrides", "layer", "tasks"),
    [
        ((), "mtoe", 7),
        (("model.use_mtoe=false",), "fusion.0", 7),
        (("model.name=soft_moe",), "tower.1", 0),
        (("model.name=soft_moe", "model.options={task_slots: true}"), "mtoe", 7),
        (("model.name=mirai", "model.attach_mtoe=append"), "mtoe", 7),
    ],
)
def test_every_model_with_routing_has_a_view(overrides: tuple[str, ...], layer: str, tasks: int) -> None:
    config = problem.config(*overrides)
    model, spec = build(config).eval(), spec_for(config)
    batch = problem.samples(spec, 12, seed=0)
    with torch.no_grad():
        tokens = model.encode(batch)
        output = model.predict(model.fuse(tokens, batch))
    view = routing_view(output, [tokens.by_modality[name].shape[1] for name in spec.modalities], spec)
    assert view is not None
    assert (view.layer, len(view.tasks)) == (layer, tasks)
    share = view.contribution()
    torch.testing.assert_close(share.sum(2), torch.ones_like(share.sum(2)))
    lacking = ~batch.present[:, 1]
    assert lacking.any()
    assert float(share[lacking][..., 1].max()) < 1e-6
    assert (share[batch.present.all(1)] > 0).all()


def test_a_model_without_mixture_has_none() -> None:
    config = problem.config("model.name=mirai")
    model, spec = build(config).eval(), spec_for(config)
    batch = problem.samples(spec, 2, seed=0)
    with torch.no_grad():
        assert routing_view(model(batch), [4, 4], spec) is None
    with pytest.raises(DataError, match="no routing"):
        RoutingSums(spec).result()
