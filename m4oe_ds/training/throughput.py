"""Arithmetic of a training step and how much of the device's peak it uses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from m4oe_ds.config import Config

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arithmetic:
    """Operations of one optimizer step on one rank, and the data-sheet peak of its device.

    Attributes:
        flops: matrix products of forward and backward, 2 per multiply-add, recomputation included.
        peak: operations per second in the precision used; None where no data sheet is known (CPU).
    """

    flops: float
    peak: float | None

    def figures(self, steps_per_s: float) -> dict[str, float]:
        """``tflops_per_s`` per rank, and ``mfu`` (model FLOP/s over peak) where the peak is known."""
        rate = self.flops * steps_per_s
        return {"tflops_per_s": rate / 1e12, **({} if self.peak is None else {"mfu": rate / self.peak})}


def arithmetic(config: Config, dtype: torch.dtype, micro: int, accumulation: int, ep_size: int) -> Arithmetic | None:
    """Counts a step of a configuration by recording one without data (:mod:`m4oe_ds.planning.model_cost`).

    None, with a warning, for a model that cannot be recorded without data; training does not depend on this number.
    """
    from m4oe_ds.planning.model_cost import DTYPES, micro_step

    precision: Any = next(name for name, value in DTYPES.items() if value == dtype)
    try:
        step = micro_step(config, precision, micro, ep_size)
    except Exception as error:  # a figure for the log must not stop a run
        _logger.warning("no FLOP/s in the log: %s: %s", type(error).__name__, error)
        return None
    return Arithmetic(step.flops() * accumulation, _peak(dtype))


def _peak(dtype: torch.dtype) -> float | None:
    if not torch.cuda.is_available():
        return None
    from m4oe_ds.planning.hardware import by_device_name

    device = by_device_name(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory)
    if device is None:
        return None
    return device.single_peak if dtype == torch.float32 else device.half_peak
