"""Reads single samples of shards, and compares shards with their manifest before they are used."""

from __future__ import annotations

import io
from pathlib import Path

from m4oe_ds.data import sources
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.manifest import Manifest, Shard, describe
from m4oe_ds.errors import DataError
from m4oe_ds.progress import track


def verify_shards(
    folder: Path | str, manifest: Manifest, *, mode: str = "full", rank: int = 0, world: int = 1
) -> list[str]:
    """Problems with this rank's share of the shards (every ``world``-th), one line each; empty = all is well.

    Args:
        mode: ``full`` compares sha256, ``size`` the size alone. Remote shards are compared by size here: their sha256
            is compared when they are fetched into the cache.
    """
    problems = []
    share = manifest.shards[rank::world]
    for shard in share if rank else track(share, f"checking {manifest.split}", "shards"):
        path = sources.join(folder, shard.name)
        remote = sources.is_remote(path)
        try:
            size = sources.size_of(path) if remote else Path(path).stat().st_size
        except FileNotFoundError:
            problems.append(f"shard {path} is missing; copy it again or convert the archive again")
            continue
        except DataError as error:
            problems.append(f"shard {error}")
            continue
        where = sources.shown(path)
        if size != shard.bytes:
            problems.append(f"shard {where}: {size} bytes instead of {shard.bytes} as in manifest.json; copy it again")
        elif mode == "full" and not remote:
            digest = describe(Path(path))[1]
            if digest != shard.sha256:
                problems.append(
                    f"shard {where}: sha256 differs from manifest.json (expected {shard.sha256[:8]}..., found "
                    f"{digest[:8]}...); copy it again"
                )
    return problems


def read_sample(
    path: Path | str, start: int, stop: int, *, shard: Shard | None = None, cache: Cache | None = None
) -> dict[str, bytes]:
    """Members of the sample in bytes ``start`` to ``stop`` of a shard, by name; ``__key__`` is its key.

    Args:
        shard: the remote shard, to read it from the cache; without it, parts are fetched one by one.
        cache: where the remote shard is kept.
    """
    if cache is not None and shard is not None and sources.is_remote(path):
        return parse_sample(cache.read(str(path), shard.bytes, shard.sha256, start, stop))
    return parse_sample(sources.open_range(str(path), start, stop))


def parse_sample(data: bytes) -> dict[str, bytes]:
    """Members of one sample from a slice of a tar, through WebDataset's own reader.

    Raises:
        DataError: not exactly one sample.
    """
    import tarfile

    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        samples = list(group_by_keys(tar_file_expander([{"url": "shard", "stream": io.BytesIO(data)}])))
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise DataError(f"a sample's bytes are not a tar archive ({type(error).__name__})") from None
    if len(samples) != 1:
        raise DataError(f"a sample's bytes hold {len(samples)} samples instead of one")
    return {name: value for name, value in samples[0].items() if not name.startswith("__") or name == "__key__"}
