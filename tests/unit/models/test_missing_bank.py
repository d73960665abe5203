"""The bank of stand-in tokens: size, which row a sample reads, which rows learn, and what it does inside the model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.routing import modality_contribution
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.embedders import Embedder
from m4oe_ds.models.m4oe import M4oE
from m4oe_ds.models.missing_bank import MissingBank, combination_index, count_tokens
from tests.distributed import problem

NAMES = ("a", "b", "c")
BANK = "model.missing_modality=bank"
GAMMA = ("data.dataset=gamma", "data.modalities=[]", "data.image_size=[32, 24]")
CONVOLUTIONAL = ("model.embedder.backbone=resnet18", "model.embedder.options={}")


def bank_of_three() -> MissingBank:
    torch.manual_seed(0)
    return MissingBank({"a": 2, "b": 3, "c": 1}, 4)


def tables(bank: MissingBank | None) -> dict[str, Tensor]:
    assert bank is not None
    return dict(zip(bank.rows, bank.parameters(), strict=True))


def learning(bank: MissingBank | None) -> dict[str, list[int]]:
    """Rows with a gradient; every table must have one, if only zeros."""
    rows = {}
    for name, table in tables(bank).items():
        assert table.grad is not None
        rows[name] = table.grad.abs().amax(1).nonzero().flatten().tolist()
    return rows


def total(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.square().sum() for value in values]).sum()


def tokens_of(bank: MissingBank, count: int) -> dict[str, Tensor]:
    return {name: torch.randn(count, length, 4) for name, length in zip(NAMES, (2, 3, 1), strict=True)}


def model_of(*overrides: str) -> tuple[Config, M4oE]:
    config = problem.config(*overrides)
    model = build(config).eval()
    assert isinstance(model, M4oE)
    return config, model


def samples(config: Config, present: list[list[bool]]) -> Batch:
    batch = problem.samples(spec_for(config), len(present), 0)
    return dataclasses.replace(batch, present=torch.tensor(present))


def test_size_of_four_modalities_at_the_width_of_the_paper() -> None:
    with torch.device("meta"):
        bank = MissingBank(dict.fromkeys(("ffdm_cc", "ffdm_mlo", "syn_cc", "syn_mlo"), 197), 768)
    assert sum(parameter.numel() for parameter in bank.parameters()) == 15 * 4 * 197 * 768 == 9_077_760


def test_rows_are_drawn_from_the_standard_normal_distribution() -> None:
    torch.manual_seed(0)
    values = tables(MissingBank({"a": 50, "b": 50}, 64))["b"].detach()
    assert float(values.mean()) == pytest.approx(0.0, abs=0.03)  # 9,600 values: a standard error is 0.01
    assert float(values.std()) == pytest.approx(1.0, abs=0.03)


def test_every_combination_has_its_own_row_and_nothing_missing_is_row_zero() -> None:
    present = torch.tensor(list(itertools.product([True, False], repeat=4)))
    index = combination_index(present)
    assert index[0] == 0  # all there
    assert sorted(index[:-1].tolist()) == list(range(15))
    assert index[-1] == 0  # nothing there: no combination
    assert combination_index(torch.tensor([[True, False, True], [False, True, False]])).tolist() == [2, 5]


def test_absent_tokens_are_those_of_the_combination_and_present_ones_stay() -> None:
    bank = bank_of_three()
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    tokens = tokens_of(bank, 4)
    filled, takes_part = bank(tokens, present)
    assert takes_part.tolist() == [[True] * 3] * 3 + [[False] * 3]
    for i, name in enumerate(NAMES):
        for row in range(4):
            if present[row, i] or row == 3:
                assert torch.equal(filled[name][row], tokens[name][row])
            else:
                number = {1: 0b010, 2: 0b011}[row]
                expected = tables(bank)[name][number].view_as(tokens[name][row])
                assert torch.equal(filled[name][row], expected)
    assert not torch.allclose(filled["b"][1], filled["b"][2])  # the same modality, another combination


def test_only_the_rows_of_combinations_that_occur_learn() -> None:
    bank = bank_of_three()
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    filled, _ = bank(tokens_of(bank, 4), present)
    total(filled.values()).backward()
    assert learning(bank) == {"a": [0b011], "b": [0b010, 0b011], "c": []}  # c is never missing


def test_content_of_absent_tokens_is_irrelevant_and_the_dtype_stays() -> None:
    bank = bank_of_three()
    present = torch.tensor([[True, False, True]] * 2)
    tokens = {name: value.bfloat16() for name, value in tokens_of(bank, 2).items()}
    spoiled = {**tokens, "b": torch.full_like(tokens["b"], float("nan"))}
    found, expected = bank(spoiled, present)[0], bank(tokens, present)[0]
    for name in NAMES:
        assert torch.equal(found[name], expected[name])
        assert found[name].dtype == torch.bfloat16


@pytest.mark.parametrize("overrides", [(), GAMMA, (*CONVOLUTIONAL, "data.image_size=[64, 96]"), CONVOLUTIONAL])
@pytest.mark.parametrize("share", [False, True])
def test_tokens_are_counted_as_the_embedders_make_them(overrides: tuple[str, ...], share: bool) -> None:
    if share and overrides == GAMMA:
        overrides = (*GAMMA, "data.modalities=[fundus]", "data.tasks=[cup]")  # unequal channels cannot share
    if overrides == CONVOLUTIONAL:
        overrides = (*CONVOLUTIONAL, "data.image_size=[32, 32]")  # one position: the hard case for a batch norm
    config, model = model_of(*overrides, f"model.embedder.share={str(share).lower()}")
    batch = samples(config, [[True] * len(model.spec.modalities)] * 2)
    with torch.no_grad():
        made = {name: value.shape[1] for name, value in model.encode(batch).by_modality.items()}
    model.train()  # as when it is built
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in model.spec.modalities:
        embedder = model.embedders.by_modality["shared" if share else name]
        assert isinstance(embedder, Embedder)
        assert count_tokens(embedder, model.spec.shape(name)) == made[name]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # no running statistics


def test_the_default_builds_no_bank_and_the_rest_starts_the_same() -> None:
    _, plain = model_of()
    config, model = model_of(BANK)
    extra = {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert extra == {f"missing_bank.rows.{name}.weight" for name in ("ffdm_cc", "syn_mlo")}
    complete = samples(config, [[True, True]] * 3)
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        expected, found = plain(complete).logits, model(complete).logits
    for task, value in expected.items():
        torch.testing.assert_close(found[task], value)  # nothing is missing: the bank has no part


@pytest.mark.parametrize("problem_", [(), GAMMA, ("model.use_mtoe=false",), ("model.use_msoe=false",)])
def test_the_answer_reads_the_bank_and_not_the_pixels(problem_: tuple[str, ...]) -> None:
    config, model = model_of(*problem_, BANK)
    batch = samples(config, [[True, False], [False, True], [True, True]])
    views = {
        name: torch.where(batch.present[:, i, None, None, None], view, 100 * torch.randn_like(view))
        for i, (name, view) in enumerate(batch.views.items())
    }
    with torch.no_grad():
        before = model(batch).logits
        noisy = model(dataclasses.replace(batch, views=views)).logits
        for table in tables(model.missing_bank).values():
            table.normal_()
        after = model(batch).logits
    for task, value in before.items():
        torch.testing.assert_close(noisy[task], value, rtol=1e-4, atol=1e-5)
        change = (after[task] - value).flatten(1).abs().amax(1)
        assert change[:2].min() > 1e-4
        assert change[2] < 1e-6


def test_stand_in_tokens_take_part_in_the_mixture() -> None:
    """A masked modality has no share in the answer; one from the bank has."""
    for option, share in (("mask", 0.0), ("bank", None)):
        config, model = model_of(f"model.missing_modality={option}")
        with torch.no_grad():
            output = model(samples(config, [[True, False]] * 3))
        assert output.modality_of_token is not None
        found = modality_contribution(output.routing["mtoe"], output.modality_of_token, 2)[:, :, 1]
        assert (found == share).all() if share is not None else (found > 0.1).all()


def test_a_sample_without_any_modality_is_finite_and_reads_nothing() -> None:
    config, model = model_of(BANK)
    batch = samples(config, [[False, False], [True, False]])
    with torch.no_grad():
        before = model(batch).logits["density"]
        for table in tables(model.missing_bank).values():
            table.normal_()
        after = model(batch).logits["density"]
    assert torch.isfinite(before).all()
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-4)


def test_every_table_learns_in_the_model() -> None:
    config, model = model_of(BANK)
    batch = samples(config, [[True, False], [False, True], [True, True]])
    total(model.train()(batch).logits.values()).backward()
    assert learning(model.missing_bank) == {"ffdm_cc": [1], "syn_mlo": [2]}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_compared_system_has_no_bank() -> None:
    with pytest.raises(ConfigError, match="aide has no bank"):
        build(problem.config("model.name=aide", BANK))
