"""One cluster and one data set for all tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import shards
from tests.slurm.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The socket paths of its daemons must be short: not below pytest's own folder."""
    with tempfile.TemporaryDirectory(prefix="m4oe-") as folder, Cluster(Path(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic shards, three steps of 32 samples per epoch."""
    return shards.write(tmp_path_factory.mktemp("shards"), {"train": 96, "val": 16, "test": 16})
