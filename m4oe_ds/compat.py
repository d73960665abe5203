"""Work-arounds for faults of other packages, each with symptom, versions and the condition for its removal."""

from __future__ import annotations

import re
import sys
from typing import Any

_DECLARED: list[Any] = []  # keeps the operator schemas registered
_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DECLARABLE = ("nms", "qnms")


def import_torchvision() -> None:
    """Imports torchvision (which timm imports) as anybody would, and once more where that ends in one known error.

    Symptom: ``RuntimeError: operator torchvision::nms does not exist``.
    Cause: a torchvision whose native library was built for another torch (CUDA beside a CPU-only one) does not load
    it, and then registers shape functions of operators that do not exist. Seen with torch 2.13.0 (CPU) and torchvision
    0.28.0. Remove when a torchvision that fits the CPU-only torch is what package indexes serve.

    Only the schema of the operator that the error names is declared: calling it still fails, and nothing in this
    package calls it. Where the plain import works, nothing is declared: a second declaration beside the native one
    ends the process.

    Raises:
        RuntimeError: whatever else importing torchvision ends with; ImportError likewise.
    """
    for _ in range(len(_DECLARABLE) + 1):
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            named = _MISSING.search(str(error))
            if named is None or named[1] not in _DECLARABLE or len(_DECLARED) == len(_DECLARABLE):
                raise
            _declare(named[1])
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]  # halves of the import that failed
        else:
            return


def _declare(operator: str) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(operator + _SCHEMA)
    _DECLARED.append(library)
