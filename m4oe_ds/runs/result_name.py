"""What results of a split are stored under: ``test`` for a run's own shards, ``test@NAME`` for any others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.data import sources
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import UserError
from m4oe_ds.runs.configuration import open_config
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.training_data import kept_data

DIGEST = "data_digest"  # in the metrics of a split: digest of the manifest it was evaluated on
_SHOWN = 8  # letters of a digest in a name


def result_name(folder: Path, split: str, data: str, manifest: Manifest, metrics: Mapping[str, Any]) -> str:
    """The key in ``metrics.json`` and the name in ``predictions/``.

    The same shards in another folder have the same digest, so they are the run's own wherever they lie.

    Args:
        folder: run folder.
        split: name of the split.
        data: shard folder that was given; empty = that of the run.
        manifest: of the split that is evaluated.
        metrics: what ``metrics.json`` holds so far.
    """
    if _own(folder, split, data, manifest, metrics):
        return split
    root = data or open_config(folder).data.root
    place = re.sub(r"[^\w.-]+", "-", re.split(r"[?#]", root)[0].rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1])
    name = f"{split}@{place or manifest.digest[:_SHOWN]}"
    known = metrics.get(name)
    if isinstance(known, Mapping) and known.get(DIGEST) != manifest.digest:  # another folder that is called the same
        name = f"{name}-{manifest.digest[:_SHOWN]}"
    return name


def title_of(name: str, entry: Mapping[str, Any]) -> str:
    """What a page calls results: ``test``, or ``test split of other shards than the run's: NAME (digest ...)``."""
    split, other, place = name.partition("@")
    if not other:
        return name
    digest = str(entry.get(DIGEST, ""))[:12]
    return f"{split} split of other shards than the run's: {place}" + (f" (digest {digest})" if digest else "")


def is_own(name: str) -> bool:
    """Whether results are of the run's own shards."""
    return "@" not in name


def _own(folder: Path, split: str, data: str, manifest: Manifest, metrics: Mapping[str, Any]) -> bool:
    """Whether shards are those of the run."""
    own = metrics.get(split)
    if isinstance(own, Mapping) and own.get(DIGEST):
        return bool(own[DIGEST] == manifest.digest)
    if not data:
        return True  # nothing says otherwise
    # evaluated by a version that kept no digest, or never: the run's own folder and its training split can tell
    kept = kept_data(RunFolder(folder))
    for root, wanted in ((open_config(folder).data.root, manifest.digest), (data, kept.digest if kept else "")):
        try:
            found = Manifest.load(sources.join(root, split if root != data else "train")).digest
        except UserError:
            continue
        return found == wanted
    return False
