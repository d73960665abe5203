"""Runs cells, each in a process of its own, resumable: what is finished is not run again, what failed is recorded."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from m4oe_ds import config_loader
from m4oe_ds.compare.cells import PRESETS, Cell
from m4oe_ds.compare.processes import Children
from m4oe_ds.config import to_dict
from m4oe_ds.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
STOPPED = 75  # as train.py: a signal stopped it, a checkpoint was saved, the same command goes on
