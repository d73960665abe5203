"""Learning-rate factors. The base rate belongs to the DeepSpeed JSON; this multiplies it, step by step."""

from __future__ import annotations

import math
from typing import Any

from m4oe_ds.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Factor of the base rate for optimizer step ``step`` (from 0): a pure function, so nothing has to be saved.

    ``step``: gamma ** floor(epoch / step_epochs), the paper's StepLR counted in epochs (resolution A21).
    ``cosine``: half a cosine from the end of warm-up to ``total_steps``. ``constant``: 1.
    """
    if step < config.warmup_steps:
        return max(config.peak_factor * (step + 1) / config.warmup_steps, config.min_factor)
    if config.kind == "step":
        value = config.gamma ** (step // steps_per_epoch // config.step_epochs)
    elif config.kind == "cosine":
        span = max(total_steps - config.warmup_steps, 1)
        value = 0.5 * (1.0 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0)))
    else:
        value = 1.0
    return max(config.peak_factor * value, config.min_factor)


def apply(engine: Any, base_rates: list[float], value: float) -> None:
    """Sets every parameter group's rate to base * value."""
    for group, base in zip(engine.optimizer.param_groups, base_rates, strict=True):
        group["lr"] = base * value
