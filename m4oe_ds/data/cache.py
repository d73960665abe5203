"""A bounded folder of whole shards fetched from elsewhere, shared by all processes of a machine.

Files are named by their sha256, so a copy is right whatever address it came from. A file appears under its name only
when complete and verified; the least recently used make room; nobody fetches what another process is fetching already.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from m4oe_ds.data.sources import DEFAULT_RETRY, Retry, Transient, attempt, chunks, open_range, shown
from m4oe_ds.errors import DataError

_logger = logging.getLogger(__name__)


@dataclass
class Cache:
    """Shards on the local disk.

    Attributes:
        folder: made if absent; several jobs may share it.
        max_bytes: most bytes that all shards in it may take together, files being fetched included.
        retry: how downloads are repeated.
    """

    folder: Path
    max_bytes: int
    retry: Retry = DEFAULT_RETRY
    _checked: set[str] = field(default_factory=set, repr=False)

    def read(self, url: str, size: int, sha256: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a shard, which is fetched first if it is not there.

        Raises:
            DataError: see :meth:`fetch`.
        """
        for _ in range(3):
            path = self.fetch(url, size, sha256)
            try:
                return open_range(str(path), start, stop)
            except DataError:
                if path.exists():
                    raise
                # another process needed the room between the two calls: fetch it again
        raise DataError(
            "is evicted from the cache as fast as it is fetched",
            shown(url),
            "raise data.cache_gb: it must hold some shards",
        )

    def fetch(self, url: str, size: int, sha256: str) -> Path:
        """Local path of a shard with the expected size and checksum.

        Raises:
            DataError: the shard does not fit into the cache, cannot be fetched, or arrives damaged twice.
        """
        if size > self.max_bytes:
            raise DataError(f"has {size} bytes, the whole cache {self.max_bytes}", shown(url), "raise data.cache_gb")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{sha256}.tar"
        if self._good(path, size, sha256):
            return path
        with _locked(self.folder / f".{sha256[:2]}.lock"):  # few lock files, and few shards that wait for each other
            if self._good(path, size, sha256):
                return path
            for last in (False, True):
                found = self._download(url, path, size)
                if found == sha256:
                    break
                path.with_suffix(".part").unlink(missing_ok=True)
                if last:
                    raise DataError(
                        f"sha256 differs from the manifest (expected {sha256[:8]}..., found {found[:8]}...)",
                        shown(url),
                        "copy the shard there again",
                    )
                _logger.warning("%s arrived damaged and is fetched again", shown(url))
            os.replace(path.with_suffix(".part"), path)
            self._checked.add(sha256)
        return path

    def _good(self, path: Path, size: int, sha256: str) -> bool:
        """Whether the copy is there and right; its checksum is taken once per process."""
        try:
            if path.stat().st_size != size:
                raise ValueError("size")
            if sha256 not in self._checked:
                with path.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                        raise ValueError("sha256")
                self._checked.add(sha256)
            os.utime(path)  # used now
        except FileNotFoundError:
            return False
        except ValueError:
            _logger.warning("a damaged copy is removed from the cache and fetched again")
            path.unlink(missing_ok=True)
            return False
        return True

    def _download(self, url: str, path: Path, size: int) -> str:
        """Fetches into ``.part``; after a failure it continues where that ended. Returns the checksum."""
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        self._make_room(size)

        def go_on() -> None:
            have = part.stat().st_size if part.exists() else 0
            with part.open("ab") as stream:
                for chunk in chunks(url, have, size if have else None, self.retry):
                    stream.write(chunk)
            if part.stat().st_size > size:
                part.unlink()
                raise DataError(
                    f"is longer than the {size} bytes of the manifest", shown(url), "copy the shard there again"
                )
            if part.stat().st_size < size:
                raise Transient(f"{part.stat().st_size} of {size} bytes")

        try:
            attempt(url, self.retry, go_on)
        except DataError:
            part.unlink(missing_ok=True)
            raise
        with part.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _make_room(self, size: int) -> None:
        """Removes the least recently used shards until ``size`` more bytes fit."""
        with _locked(self.folder / ".room.lock"):
            files = []
            for path in self.folder.iterdir():
                if path.suffix in (".tar", ".part"):
                    try:
                        files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
                    except FileNotFoundError:
                        continue
            total = sum(length for _, length, _ in files)
            for _, length, path in sorted(files):
                if total + size <= self.max_bytes:
                    break
                if path.suffix == ".tar":  # a reader that has it open keeps its copy until it closes it
                    path.unlink(missing_ok=True)
                    total -= length


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for a lock of the operating system: it ends with the process that holds it, whatever happens to that."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
