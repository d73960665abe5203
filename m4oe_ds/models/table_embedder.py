"""Rows of a table to tokens, one per column.

The numerical and categorical feature tokenizer of Gorishniy et al., "Revisiting deep learning models for tabular data",
NeurIPS 2021, with a learned vector per column in place of a value that is not known. Fidelity: re-derived from the
paper; nothing copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m4oe_ds.data.schema import Column
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.backbones import TokenEmbedder


class TableEmbedder(TokenEmbedder):
    """A number x of column k becomes ``x w_k + b_k``, a category its row of a table, an unknown value the vector u_k of
    its column; a layer norm follows.

    Args:
        columns: of the table, in the order of its tensor.
        dim: token width d.

    Attributes:
        number: ``[2, numbers, d]`` w and b.
        missing: ``[columns, d]`` u.
        categories: a row per category, those of one column after those of the column before; None without any.

    Raises:
        ConfigError: a table without columns.
    """

    order: Tensor
    place: Tensor
    first: Tensor

    def __init__(self, columns: tuple[Column, ...], dim: int) -> None:
        super().__init__()
        if not columns:
            raise ConfigError("a table needs at least one column", "data.modalities")
        numbers = [k for k, column in enumerate(columns) if column.kind == "number"]
        categories = [k for k, column in enumerate(columns) if column.kind != "number"]
        counts = [len(columns[k].values) for k in categories]
        bound = dim**-0.5  # as in the paper: uniform within 1 / sqrt(d)
        self.number = nn.Parameter(torch.empty(2, len(numbers), dim).uniform_(-bound, bound)) if numbers else None
        self.missing = nn.Parameter(torch.empty(len(columns), dim).uniform_(-bound, bound))
        self.categories: nn.Embedding | None = None
        if categories:
            self.categories = nn.Embedding(sum(counts), dim)
            nn.init.uniform_(self.categories.weight, -bound, bound)
        self.norm = nn.LayerNorm(dim)
        # numbers first: columns in this order, places of the columns in it, and the first row of every category
        order = numbers + categories
        for name, values in (
            ("order", order),
            ("place", [order.index(k) for k in range(len(columns))]),
            ("first", [sum(counts[:j]) for j in range(len(counts))]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def forward(self, table: Tensor) -> Tensor:
        """``[B, columns, 2] -> [B, columns, d]``, from value and 1 where it is known, in the dtype of the parameters.

        The value may be anything where it is not known, NaN included. Codes of categories must not have been rounded: a
        batch keeps tables in float32. The gradient with respect to the flag is that of knowing the value.
        """
        known = table[..., 1:]  # [B, K, 1]
        value = torch.where(known > 0, table[..., :1], torch.zeros_like(known))[:, self.order]
        numbers = 0 if self.number is None else self.number.shape[1]
        parts = []
        if self.number is not None:
            weight, bias = self.number  # [numbers, d]
            parts.append(value[:, :numbers].to(weight.dtype) * weight + bias)
        if self.categories is not None:
            parts.append(self.categories(value[:, numbers:, 0].long() + self.first))
        tokens = torch.cat(parts, 1)[:, self.place]
        share = known.to(tokens.dtype)
        return self.norm(tokens * share + self.missing * (1 - share))
