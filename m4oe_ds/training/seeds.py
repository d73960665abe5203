"""Every generator from one seed and a purpose string."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose; different purposes are independent."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & (2**63 - 1)


def seed_everything(seed: int, rank: int) -> None:
    """Seeds Python, NumPy and torch of this rank (dropout and the like differ between ranks)."""
    value = derive(seed, "rank", rank)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002  (third-party code may use the global generator)
    torch.manual_seed(value)


def capture() -> dict[str, Any]:
    """State of this rank's torch generators, as tensors (loadable without unpickling)."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts a captured state back."""
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
