"""Work-arounds for faults of other packages, each with symptom, versions and the condition for its removal."""

from __future__ import annotations

import contextlib

_LIBRARY = None  # keeps the operator schemas registered


def declare_torchvision_operators() -> None:
    """Makes ``import torchvision`` (hence ``import timm``) work with a CPU-only torch.

    Symptom: ``RuntimeError: operator torchvision::nms does not exist``.
    Cause: the registry's torchvision wheel is built for CUDA torch; its native library does not load with a CPU
    torch, and torchvision 0.28 registers shape functions for operators that then do not exist. Seen with torch 2.13.0
    (CPU) and torchvision 0.28.0. Remove when a CPU torchvision wheel is what the registry serves. Does nothing where
    the native operators are present. Only the schemas are declared: calling the operators still fails, and nothing in
    this package calls them.
    """
    global _LIBRARY
    if _LIBRARY is not None:
        return
    import importlib.util
    from pathlib import Path

    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    library = Path(spec.origin).parent / "_C.so"
    if library.exists():
        with contextlib.suppress(OSError):  # the very fault this function exists for: what is missing is declared below
            torch.ops.load_library(str(library))
    missing = [name for name in ("nms", "qnms") if not _operator_exists(f"torchvision::{name}")]
    if missing:
        _LIBRARY = torch.library.Library("torchvision", "DEF" if len(missing) == 2 else "FRAGMENT")
        for name in missing:
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _operator_exists(qualified_name: str) -> bool:
    import torch

    return bool(torch._C._jit_get_schemas_for_operator(qualified_name))
