"""What a scanned film has and a detector has not: a bright frame where the scanner saw past the film."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME_SHARE = 0.012  # of the longer side: widest frame that is taken away
STEP = 0.05  # of the range of values: tissue changes less from the border to this far inside


def without_frame(stored: NDArray[Any]) -> NDArray[Any]:
    """The film with its outermost pixels no brighter than those further inside.

    A frame that touches the breast would become part of it, and stretch its box over the whole film. Tissue that goes
    on to the border is as bright further inside, and stays as it is.

    Args:
        stored: unsigned integers [H, W] with bright tissue on dark air.
    """
    wide = max(1, round(FRAME_SHARE * max(stored.shape)))
    if min(stored.shape) <= 2 * wide:
        return stored
    out = stored.copy()
    step = round(STEP * (int(stored.max()) - int(stored.min())))
    top = int(np.iinfo(stored.dtype).max)
    for side in (out, out[::-1], out.T, out.T[::-1]):  # views: each has one border of the film first
        inside = np.minimum(side[wide].astype(np.int64) + step, top).astype(stored.dtype)
        np.minimum(side[:wide], inside, out=side[:wide])
    return out
