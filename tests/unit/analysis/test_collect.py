"""One pass gives the same whatever the batch size, leaves padding out, and fits every registered kind of model."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.analysis.collect import Collected, _Rows, collect, collect_features
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import DataError
from m4oe_ds.models import build, spec_for
from tests.distributed import problem

CPU = torch.device("cpu")
TASKS = ("density", "risk1")
CLOSE = {"rtol": 1e-3, "atol": 1e-5}  # float32 sums in another order


def batches(spec: Any, size: int, count: int = 8, padded: bool = False) -> Iterator[Batch]:
    whole = problem.samples(spec, count, seed=0)
    height, width = spec.image_size
    for task in spec.tasks:
        if task.dense:
            whole.labels[task.name] = (torch.rand(count, 1, height, width) < 0.5).float()
    for start in range(0, count, size):
        part = problem.part(whole, start, min(start + size, count))
        if padded:
            part.valid[-1] = False
            part.label_mask[-1] = False
        yield part


def run(*overrides: str, size: int = 8, padded: bool = False, tasks: tuple[str, ...] = TASKS) -> tuple[Collected, Any]:
    config = problem.config(*overrides)
    model, spec = build(config).eval(), spec_for(config)
    return collect(model, batches(spec, size, padded=padded), tasks, CPU), spec


def test_the_batch_size_changes_nothing() -> None:
    one, _ = run(size=8)
    other, _ = run(size=3)
    assert one.keys.tolist() == other.keys.tolist() == [f"k{i}" for i in range(8)]
    for name in ("contribution", "saliency", "rollout", "divergence", "loss_increase", "token_share", "present"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), err_msg=name, **CLOSE)
    assert one.routing is not None
    assert other.routing is not None
    for name in ("utilisation_ij", "contribution_ki", "expert_mass_jk"):
        np.testing.assert_allclose(one.routing[name], other.routing[name], err_msg=name, **CLOSE)
    assert one.experts is not None
    assert other.experts is not None
    np.testing.assert_allclose(one.experts["dependency_jk"], other.experts["dependency_jk"], **CLOSE)
    for name, mean in one.features.means.by_modality.items():
        torch.testing.assert_close(mean, other.features.means.by_modality[name], rtol=1e-3, atol=1e-5)


def test_padding_leaves_no_trace() -> None:
    whole, _ = run(size=4)
    padded, _ = run(size=4, padded=True)
    kept = [0, 1, 2, 4, 5, 6]
    assert padded.keys.tolist() == [f"k{i}" for i in kept]
    assert padded.contribution is not None
    assert whole.contribution is not None
    np.testing.assert_allclose(padded.contribution, whole.contribution[kept], **CLOSE)
    assert padded.routing is not None
    assert padded.routing["samples"] == 6
    assert len(padded.features.encoder["ffdm_cc"]) == 6


def test_memory_is_bounded_and_population_values_are_those_of_all() -> None:
    config = problem.config()
    model, spec = build(config).eval(), spec_for(config)
    whole = collect(model, batches(spec, 2), TASKS, CPU)
    part = collect(model, batches(spec, 2), TASKS, CPU, limit=3, most_rows=3)
    assert (part.samples, len(part.keys), len(part.saliency), len(part.features.keys)) == (8, 3, 3, 3)
    assert part.keys.tolist() == part.features.keys.tolist()
    rows = [whole.keys.tolist().index(key) for key in part.keys]
    np.testing.assert_array_equal(part.saliency, whole.saliency[rows])
    np.testing.assert_allclose(part.uniform, whole.token_share.mean(0), **CLOSE)
    assert part.routing is not None
    assert whole.routing is not None
    np.testing.assert_array_equal(part.routing["utilisation_ij"], whole.routing["utilisation_ij"])
    for name, mean in part.features.means.by_modality.items():
        torch.testing.assert_close(mean, whole.features.means.by_modality[name])
    kept = _Rows(5)
    for number in range(40):
        kept.add(
            torch.tensor([True, False]), {"key": np.array([f"s{number}", "padding"]), "x": torch.full((2,), number)}
        )
        assert kept.count <= 10
    assert kept.seen == 40
    expected = sorted(range(40), key=lambda i: blake2b(f"s{i}".encode(), digest_size=8).digest())[:5]
    assert kept.get("x").tolist() == sorted(expected)


def test_population_is_the_mean_over_labelled_rows() -> None:
    found, spec = run()
    assert found.routing is not None
    assert found.contribution is not None
    for k, task in enumerate(spec.tasks):
        known = found.labels[task.name] >= 0
        if known.any():
            expected = found.contribution[known, k].mean(0)
            np.testing.assert_allclose(found.routing["contribution_ki"][k], expected, **CLOSE)
    np.testing.assert_allclose(found.contribution.sum(2), 1.0, **CLOSE)
    np.testing.assert_allclose(found.token_share.sum(1), 1.0, **CLOSE)
    assert (found.token_share[~found.present] == 0).all()


def test_features_are_means_over_the_modalitys_tokens() -> None:
    config = problem.config()
    model, spec = build(config).eval(), spec_for(config)
    batch = problem.samples(spec, 8, seed=0)
    captured: list[torch.Tensor] = []
    handle = model.mtoe.register_forward_hook(lambda _m, _a, out: captured.append(out[0]))
    with torch.no_grad():
        tokens = model.encode(batch)
        model.fuse(tokens, batch)
    handle.remove()
    found = collect_features(model, batches(spec, 8), TASKS, CPU)
    assert found.representation == "mtoe"
    k = spec.task_names.index("risk1")
    np.testing.assert_allclose(found.task["risk1"]["syn_mlo"], captured[0][:, k, 5:].mean(1), **CLOSE)
    np.testing.assert_allclose(found.encoder["syn_mlo"], tokens.by_modality["syn_mlo"].mean(1), **CLOSE)
    present = batch.present[:, 1]
    mean = tokens.by_modality["syn_mlo"][present].mean(0)
    torch.testing.assert_close(found.means.by_modality["syn_mlo"][0], mean, rtol=1e-3, atol=1e-5)


def test_the_limit_bounds_the_rows_of_features() -> None:
    config = problem.config()
    model, spec = build(config).eval(), spec_for(config)
    found = collect_features(model, batches(spec, 3), TASKS, CPU, limit=4)
    order = sorted((f"k{i}" for i in range(8)), key=lambda key: blake2b(key.encode(), digest_size=8).digest())
    assert found.keys.tolist() == sorted(order[:4])
    assert len(found.encoder["ffdm_cc"]) == len(found.present) == 4
    assert collect_features(model, batches(spec, 8), TASKS, CPU, limit=4).keys.tolist() == found.keys.tolist()
    with pytest.raises(DataError, match="no samples"):
        collect_features(model, iter(()), TASKS, CPU)


@pytest.mark.parametrize(
    ("overrides", "routed", "rolled", "representation"),
    [
        (("model.use_mtoe=false",), True, True, "encoder"),
        (("model.name=soft_moe",), True, True, "tower"),
        (("model.name=soft_moe", "model.options={task_slots: true}"), True, True, "mtoe"),
        (("model.name=mirai",), False, None, "encoder"),
        (("model.name=mmodn",), False, None, "encoder"),
        (("model.name=mirai", "model.attach_mtoe=replace"), True, True, "mtoe"),
    ],
)
def test_models_of_every_kind(
    overrides: tuple[str, ...], routed: bool, rolled: bool | None, representation: str
) -> None:
    found, spec = run(*overrides, size=4)
    assert (found.routing is not None, found.experts is not None) == (routed, routed)
    assert rolled is None or (found.rollout is not None) == rolled
    assert found.features.representation == representation
    assert found.saliency.shape == (8, len(spec.tasks), 2)
    known = found.saliency[np.isfinite(found.saliency).all(2)]
    np.testing.assert_allclose(known.sum(1), 1.0, **CLOSE)


def test_a_bank_of_missing_tokens_takes_part() -> None:
    found, _ = run("model.missing_modality=bank", size=4)
    assert not found.present.all()
    np.testing.assert_allclose(found.token_share, 0.5)
    assert found.contribution is not None
    assert (found.contribution > 0).all()


def test_a_segmentation_task_has_shares_and_effects() -> None:
    found, spec = run(
        "data.dataset=gamma", "data.modalities=[fundus, oct]", "data.tasks=[glaucoma, cup]", size=4, tasks=("glaucoma",)
    )
    k = spec.task_names.index("cup")
    assert found.experts is not None
    assert found.experts["labels_k"][k] > 0
    np.testing.assert_allclose(found.saliency[:, k].sum(1), 1.0, **CLOSE)
    both = found.present.all(1)
    assert (found.divergence[both][:, k] >= 0).all()
    assert np.isnan(found.loss_increase[:, k]).all()
    assert set(found.labels) == {"glaucoma"}
