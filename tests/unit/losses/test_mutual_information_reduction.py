"""I(M;E|T) over data-parallel ranks, emulated in one process.

Every rank calls the loss with its share of the batch and a ``reduce`` that returns the sum of what all ranks handed in.
The engine averages gradients over ranks, so the average of the local gradients must be that of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m4oe_ds.losses import conditional_mutual_information

SOURCES = ["dispatch", "gate", "joint", "combine"]
AGGREGATES = ["batch", "sample"]
MODALITY = torch.tensor([0, 0, 1, 1, 1, 2])
TASKS = 3
EXACT = {"rtol": 0, "atol": 1e-12}

# labels [B, p] as 0/1 rows; how the 8 samples are dealt to the ranks
EVEN = torch.ones(8, TASKS, dtype=torch.bool)
UNEVEN = torch.tensor(
    [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool
)
FIRST_HAS_NONE = UNEVEN.clone()
FIRST_HAS_NONE[:2] = False
DEALS = {
    "2 ranks": [4, 4],
    "4 ranks": [2, 2, 2, 2],
    "2 ranks of unequal size": [2, 6],
    "4 ranks of unequal size": [2, 1, 4, 1],
}
LABELS = {"all labels": EVEN, "unequal label counts": UNEVEN, "first rank has none": FIRST_HAS_NONE}


def emulate(
    loss: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor] | None, int], Tensor],
    logits: Tensor,
    labels: Tensor,
    deal: list[int],
) -> list[Tensor]:
    """The loss of every rank. The first pass records what each would send, the second answers with the sum."""
    parts = list(zip(logits.split(deal), labels.split(deal), strict=True))
    sent: list[Tensor] = []

    def record(value: Tensor) -> Tensor:
        assert not value.requires_grad, "what is sent must be detached: backward has no collective"
        sent.append(value.clone())
        return value

    for part, mask in parts:
        loss(part, mask, record, len(deal))
    assert len(sent) == len(deal)
    assert len({tuple(value.shape) for value in sent}) == 1
    total = torch.stack(sent).sum(0)
    return [loss(part, mask, lambda value: total.clone(), len(deal)) for part, mask in parts]


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    """Tokens [8, 6, 4] and a shared parameter [4, 5, 3] that makes the logits."""
    return 1.5 * torch.randn(8, 6, 4, dtype=torch.float64), torch.randn(4, 5, TASKS, dtype=torch.float64)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_ranks_agree_with_the_global_batch(problem, source: str, aggregate: str, deal: str, labels: str) -> None:
    tokens, phi = problem
    phi.requires_grad_()
    options = {"source": source, "aggregate": aggregate}
    logits = torch.einsum("btd,djk->btjk", tokens, phi)
    expected = conditional_mutual_information(logits, MODALITY, label_mask=LABELS[labels], **options)
    expected_phi, expected_logits = torch.autograd.grad(expected, [phi, logits])

    def loss(part: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] | None, world: int) -> Tensor:
        return conditional_mutual_information(
            torch.einsum("btd,djk->btjk", part, phi), MODALITY, label_mask=mask, reduce=reduce, world=world, **options
        )

    values = emulate(loss, tokens, LABELS[labels], DEALS[deal])
    for value in values:
        torch.testing.assert_close(value, expected, **EXACT)
    gradients = [torch.autograd.grad(value, phi)[0] for value in values]
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected_phi, **EXACT)
    assert expected_phi.abs().max() > 1e-4  # the comparison is not about zeros

    # and logit by logit: each rank's own logits carry their share times the number of ranks
    leaf = logits.detach().requires_grad_()

    def on_logits(part: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] | None, world: int) -> Tensor:
        return conditional_mutual_information(part, MODALITY, label_mask=mask, reduce=reduce, world=world, **options)

    total = sum(emulate(on_logits, leaf, LABELS[labels], DEALS[deal])) / len(DEALS[deal])
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], expected_logits, **EXACT)


@pytest.mark.parametrize("task_weight", ["prior", "sum"])
@pytest.mark.parametrize("prior", [None, [0.5, 0.2, 0.3]], ids=["label shares", "given prior"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_task_weights_and_masks_over_ranks(problem, aggregate: str, prior, task_weight: str) -> None:
    tokens, phi = problem
    token_mask = torch.rand(8, 6) < 0.8
    token_mask[:, 0] = True
    options = {
        "aggregate": aggregate,
        "task_weight": task_weight,
        "task_prior": None if prior is None else torch.tensor(prior, dtype=torch.float64),
        "num_modalities": 3,
    }
    logits = torch.einsum("btd,djk->btjk", tokens, phi).requires_grad_()
    expected = conditional_mutual_information(logits, MODALITY, label_mask=UNEVEN, token_mask=token_mask, **options)
    offset = iter(())

    def loss(part: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] | None, world: int) -> Tensor:
        return conditional_mutual_information(
            part, MODALITY, label_mask=mask, token_mask=next(offset), reduce=reduce, world=world, **options
        )

    offset = iter([*token_mask.split([2, 6]), *token_mask.split([2, 6])])  # two passes
    values = emulate(loss, logits, UNEVEN, [2, 6])
    for value in values:
        torch.testing.assert_close(value, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(sum(values) / 2, logits)[0], torch.autograd.grad(expected, logits)[0], **EXACT
    )


def test_no_label_on_any_rank(problem) -> None:
    tokens, phi = problem
    logits = torch.einsum("btd,djk->btjk", tokens, phi).requires_grad_()

    def loss(part: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] | None, world: int) -> Tensor:
        return conditional_mutual_information(part, MODALITY, label_mask=mask, reduce=reduce, world=world)

    values = emulate(loss, logits, torch.zeros(8, TASKS, dtype=torch.bool), [4, 4])
    gradient = torch.autograd.grad(sum(values), logits)[0]
    assert all(value.item() == 0 for value in values)
    assert (gradient == 0).all()


def test_float32_ranks_agree_with_the_global_batch(problem) -> None:
    tokens, phi = problem
    logits = torch.einsum("btd,djk->btjk", tokens, phi).float().requires_grad_()
    expected = conditional_mutual_information(logits, MODALITY, label_mask=UNEVEN)

    def loss(part: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] | None, world: int) -> Tensor:
        return conditional_mutual_information(part, MODALITY, label_mask=mask, reduce=reduce, world=world)

    values = emulate(loss, logits, UNEVEN, [2, 2, 2, 2])
    for value in values:
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)  # a few float32 roundings
    gradient = torch.autograd.grad(sum(values) / 4, logits)[0]
    reference = torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(gradient, reference, rtol=0, atol=2e-6 * reference.abs().max().item())


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_comparison_notices_a_missing_reduction(problem, aggregate: str) -> None:
    """Without the exchange, ranks compute the information of their own samples: another number."""
    tokens, phi = problem
    logits = torch.einsum("btd,djk->btjk", tokens, phi)
    expected = conditional_mutual_information(logits, MODALITY, label_mask=UNEVEN, aggregate=aggregate)
    local = [
        conditional_mutual_information(part, MODALITY, label_mask=mask, aggregate=aggregate)
        for part, mask in zip(logits.split(2), UNEVEN.split(2), strict=True)
    ]
    assert (torch.stack(local).mean() - expected).abs() > 1e-3
