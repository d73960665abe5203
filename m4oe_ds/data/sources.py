"""Where the bytes of a shard come from. Local files; remote shards plug in at :func:`open_range`."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import BinaryIO

from m4oe_ds.errors import DataError

_MAX_OPEN = 64


class _OpenFiles:
    """Least-recently-used open files of this process: random access must not pay an open per sample."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._owner = os.getpid()

    def get(self, path: str) -> BinaryIO:
        if self._owner != os.getpid():  # a forked worker must not share file positions with its parent
            self._files.clear()
            self._owner = os.getpid()
        if path in self._files:
            self._files.move_to_end(path)
        else:
            self._files[path] = open(path, "rb")  # noqa: SIM115  (closed when it falls out of the cache)
            if len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)[1].close()
        return self._files[path]


_files = _OpenFiles()


def open_range(path: str, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a shard.

    Raises:
        DataError: missing file, fewer bytes than asked for, or a remote address (not available in this version).
    """
    if "://" in path:
        scheme = path.split("://", 1)[0]
        raise DataError(
            f"remote shards ({scheme}://) are not available in this version", fix="copy them to a local folder"
        )
    try:
        stream = _files.get(path)
        stream.seek(start)
        data = stream.read(stop - start)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None
    if len(data) != stop - start:
        raise DataError(f"ends at byte {start + len(data)}, {stop} expected", path, "copy the shard again")
    return data
