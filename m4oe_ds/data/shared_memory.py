"""Shared memory, through which reader processes hand over their samples. Imports no torch."""

from __future__ import annotations

FOLDER = "/dev/shm"
AHEAD = 4  # batches that a reader process keeps ready
FIX = "docker run --shm-size=16g (or --ipc=host), fewer data.workers, or data.workers=0"
