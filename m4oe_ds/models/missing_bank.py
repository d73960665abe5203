"""Stand-in tokens for absent modalities, learned for every combination of present ones.

Yun et al., "Flex-MoE: modeling arbitrary modality combination via the flexible mixture-of-experts", NeurIPS 2024: a
table (2^m - 1) x m x l x d from N(0, 1) whose row q, i holds the tokens of modality i for samples of combination q.
Fidelity: re-derived from public facts about the table; nothing copied. Only the table is used here, in front of our
mixtures: not Flex-MoE's sparse experts per combination, its supervision of their gate, nor its sorted warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from m4oe_ds.models.backbones import TokenEmbedder


def combination_index(present: Tensor) -> Tensor:
    """Number of a sample's combination: sum of 2^i over its absent modalities i, so 0 = nothing is missing.

    Args:
        present: ``[B, m]`` bool.

    Returns:
        ``[B]`` int64 in 0 .. 2^m - 2; 0 as well for a sample without any modality (padding), which has no combination.
    """
    powers = 2 ** torch.arange(present.shape[1], device=present.device)
    index = (~present * powers).sum(1)
    return torch.where(present.any(1), index, 0)


def count_tokens(embedder: TokenEmbedder, shape: tuple[int, ...]) -> int:
    """Tokens l that an embedder makes of one sample, found without computing them (on the meta device).

    Args:
        embedder: of a modality.
        shape: of the tensor of one sample.
    """
    values = [*embedder.named_parameters(), *embedder.named_buffers()]
    state = {name: value.detach().to("meta") for name, value in values}
    with torch.no_grad():  # two samples: a batch norm refuses to train on a single value
        tokens = functional_call(embedder, state, torch.empty(2, *shape, device="meta"))
    return int(tokens.shape[1])


class MissingBank(nn.Module):
    """Learned tokens in place of those of absent modalities.

    Args:
        lengths: ``{modality: l_i}``, in the order of ``present``.
        dim: token width d.

    Attributes:
        rows: ``{modality: table [2^m - 1, l_i * d]}``. Rows of combinations that do not occur, or that have the
            modality, get no gradient.
    """

    def __init__(self, lengths: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        # embeddings, not one parameter: their own forward is where ZeRO stage 3 gathers them; they start from N(0, 1)
        self.rows = nn.ModuleDict(
            {name: nn.Embedding(2 ** len(lengths) - 1, length * dim) for name, length in lengths.items()}
        )

    def forward(self, tokens: Mapping[str, Tensor], present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens with the absent modalities filled in, and which modalities take part from here on.

        Args:
            tokens: ``{modality: [B, l_i, d]}``.
            present: ``[B, m]`` bool.

        Returns:
            ``{modality: [B, l_i, d]}`` in the dtype of the tokens, and ``[B, m]`` bool: all modalities of a sample that
            has any. A sample without any is left as it is, and absent.

        Numerics: values at the places of an absent modality do not matter, NaN included. Every table is in the graph
        whatever is missing, so all ranks reduce the same gradients.
        """
        index = combination_index(present)  # [B]
        missing = ~present & present.any(1, keepdim=True)  # [B, m]
        filled = {}
        for i, (name, table) in enumerate(self.rows.items()):
            x = tokens[name]
            stand_in = table(index).unflatten(1, (-1, self.dim)).to(x.dtype)  # [B, l_i, d]
            filled[name] = torch.where(missing[:, i, None, None], stand_in, x)
        return filled, present | missing
