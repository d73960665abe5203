"""Streams that a run makes of its configuration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.data import sources
from m4oe_ds.models import spec_for
from m4oe_ds.runs import assemble
from tests.integration import shards


def test_every_manifest_is_read_once_however_many_streams_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shards.write(tmp_path / "shards", {"train": 12, "val": 7})
    reads: Counter[str] = Counter()
    read_whole = sources.read_whole

    def counted(path: str) -> bytes:
        reads[Path(path).relative_to(root).as_posix()] += 1
        return read_whole(path)

    monkeypatch.setattr(sources, "read_whole", counted)
    config = config_loader.load(None, (*shards.SMALL, f"data.root={root}"))
    manifests = assemble.load_manifests(config, ("train", "val"))
    spec = spec_for(config)
    steps = list(assemble.stream(config, "train", spec, 4, 1, manifests).epoch(0))
    assert len(steps) == 3
    for _ in range(2):
        batches = list(assemble.stream(config, "val", spec, 4, 1, manifests).evaluation())
        assert sum(int(batch.valid.sum()) for batch in batches) == 7
    assert reads == {"train/manifest.json": 1, "val/manifest.json": 1}


def test_every_split_is_standardised_as_the_training_split(tmp_path: Path) -> None:
    root = shards.write(tmp_path / "shards", {"train": 12, "val": 7})
    config = config_loader.load(None, (*shards.SMALL, f"data.root={root}"))
    manifests = assemble.load_manifests(config, ("train", "val"))
    manifests["val"].pixel_statistics.clear()
    reading = assemble.stream(config, "val", spec_for(config), 4, 1, manifests).reading
    assert dict(reading.normalise) == dict.fromkeys(manifests["train"].modalities, (0.25, 0.2))
