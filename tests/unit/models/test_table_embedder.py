"""Rows of a table as tokens: one per column, unknown values without a trace of their content."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m4oe_ds.data.schema import Column
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.missing_bank import count_tokens
from m4oe_ds.models.table_embedder import TableEmbedder

COLUMNS = (
    Column("sex", "category", ("female", "male")),
    Column("age", "number"),
    Column("ward", "category", ("a", "b", "c")),
    Column("marker", "number"),
)
ROW = torch.tensor([[[1.0, 1.0], [0.5, 1.0], [2.0, 1.0], [-1.5, 1.0]]])


def embedder(dim: int = 8) -> TableEmbedder:
    torch.manual_seed(0)
    return TableEmbedder(COLUMNS, dim)


def unknown(row: Tensor, column: int, content: float = 0.0) -> Tensor:
    row = row.clone()
    row[:, column, 0], row[:, column, 1] = content, 0.0
    return row


def test_numbers_and_categories_become_what_the_paper_says() -> None:
    table = embedder()
    tokens = table(ROW)
    weight, bias = table.number
    rows = [table.categories.weight[1], 0.5 * weight[0] + bias[0], table.categories.weight[2 + 2], None]
    rows[3] = -1.5 * weight[1] + bias[1]
    torch.testing.assert_close(tokens, table.norm(torch.stack(rows))[None])
    lacking = table(unknown(unknown(ROW, 1), 2))
    for column in (1, 2):
        torch.testing.assert_close(lacking[0, column], table.norm(table.missing[column]))
    for column in (0, 3):
        assert torch.equal(lacking[0, column], tokens[0, column])


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("content", [1.0, 1e30, -7.0, float("nan"), float("inf")])
def test_an_unknown_value_leaves_no_trace(column: int, content: float) -> None:
    table = embedder()
    clean, dirty = (table(unknown(ROW, column, value)) for value in (0.0, content))
    assert torch.equal(clean, dirty)
    row = unknown(ROW, column, content).requires_grad_()
    table(row).square().sum().backward()
    assert row.grad[0, column, 0] == 0


def test_every_vector_of_every_parameter_learns() -> None:
    table = embedder()
    rows = torch.cat([ROW, *(unknown(ROW, column) for column in range(4))])
    rows[0, 0, 0], rows[1, 2, 0], rows[2, 2, 0] = 0.0, 0.0, 1.0
    (table(rows) * torch.randn(5, 4, 8)).sum().backward()
    for name, parameter in table.named_parameters():
        assert (parameter.grad.abs().sum(-1) > 0).all(), name


def test_codes_beyond_the_precision_of_bfloat16_stay_apart() -> None:
    many = TableEmbedder((Column("site", "category", tuple(f"s{i}" for i in range(600))),), 8).to(torch.bfloat16)
    rows = torch.stack([torch.arange(600.0), torch.ones(600)], 1)[:, None]
    tokens = many(rows)
    assert tokens.dtype == torch.bfloat16
    assert torch.isfinite(tokens).all()
    expected = many.norm(many.categories.weight)[:, None]
    assert torch.equal(tokens, expected)


def test_tables_of_one_kind_of_column_and_none_at_all() -> None:
    for chosen in (COLUMNS[:1], COLUMNS[1:2]):
        table = TableEmbedder(chosen, 8)
        assert table(torch.ones(3, 1, 2)).shape == (3, 1, 8)
        assert count_tokens(table, (1, 2)) == 1
    with pytest.raises(ConfigError, match="at least one column"):
        TableEmbedder((), 8)
