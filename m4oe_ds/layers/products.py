"""Matrix products on CPUs by the faster of the two libraries that PyTorch is built with.

PyTorch multiplies float32 matrices with MKL, which leaves the AVX-512 units of AMD processors idle; oneDNN uses them
and is 2.2 times as fast there (docs/reports/benchmarks.md). Which one is used depends on the processor and on the sizes
alone, so that a run that is started again makes the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

MIN_FLOPS = 1.6e7  # of one product; below that the call costs what is gained
_allowed: ContextVar[bool] = ContextVar("allowed", default=True)


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor whose AVX-512 units MKL does not use."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        torch.ops.mkldnn._linear_pointwise  # noqa: B018  # the product that torch.compile emits; not in every build
        vendor = Path("/proc/cpuinfo").read_text().partition("vendor_id")[2].splitlines()[0]
    except (AttributeError, RuntimeError, OSError, IndexError):
        return False
    return "AuthenticAMD" in vendor


def one_by_one(like: Tensor, rows: int, inner: int, columns: int) -> bool:
    """Whether products of ``[rows, inner]`` and ``[inner, columns]`` matrices should be made singly, through oneDNN."""
    return (
        like.dtype == torch.float32
        and like.device.type == "cpu"
        and type(like) in (Tensor, nn.Parameter)  # not the fake tensors of a plan
        and not torch.compiler.is_compiling()
        and 2.0 * rows * inner * columns >= MIN_FLOPS
        and _allowed.get()
        and onednn_is_faster()
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of batched matrices ``[b, m, k]``, ``[b, k, n]``; the strides of the result are unspecified.

    Not differentiable: for use within autograd functions.
    """
    if len(a) != 1 or not one_by_one(a, a.shape[1], a.shape[2], b.shape[2]):
        return torch.bmm(a, b)
    return _single(a[0], b[0])[None]


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out[:] = a b``, as :func:`product`."""
    if len(a) != 1 or not one_by_one(a, a.shape[1], a.shape[2], b.shape[2]):
        torch.bmm(a, b, out=out)
    else:
        out[0].copy_(_single(a[0], b[0]))


def _single(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` for ``[m, k]`` and ``[k, n]``: oneDNN wants the rows of its first factor adjacent, so the smaller is
    copied.
    """
    if a.stride(1) != 1 and a.stride(0) == 1 and a.numel() > b.numel():
        return _linear(b.T, a).T
    return _linear(a, b.T)


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows weight^T``.

    Weights with gaps between their rows would fall into a reference kernel, a thousand times slower.
    """
    if not weight.is_contiguous() and not weight.T.is_contiguous():
        weight = weight.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), weight, None, "none", [], "")
    return out


@contextlib.contextmanager
def only_mkl() -> Iterator[None]:
    """Within the block products are PyTorch's own."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)
