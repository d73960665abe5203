"""Where the bytes of a shard come from: local files, ``http(s)://``, ``s3://`` and ``gs://``.

HTTP goes through urllib3, S3 and (through its S3-compatible interface) Google Cloud Storage through boto3: both are
synchronous, so that a forked reader process can use them. Whatever may pass is tried again with growing pauses; what
will not, such as a missing file, fails at once. No message holds credentials or query strings.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from m4oe_ds.errors import DataError, EnvironmentProblem

_logger = logging.getLogger(__name__)
_MAX_OPEN = 16
_CHUNK = 1 << 20
AT_ONCE = 16  # requests of one process at the same time
_NOT_THERE, _MOVED = (404, 410), (301, 302, 307, 308)
SCHEMES = ("http", "https", "s3", "gs")


class Transient(Exception):
    """A failure that may pass: a reset, a timeout, a 5xx, a body that ended early."""


class Refused(DataError):
    """An answer that will stay the same.

    Attributes:
        status: status of HTTP.
        location: where the server says that the file is instead; empty if it does not.
    """

    def __init__(self, what: str, where: str = "", fix: str = "", status: int = 0, location: str = "") -> None:
        super().__init__(what, where, fix)
        self.status, self.location = status, location


@dataclass(frozen=True)
class Retry:
    """How often and how long to try.

    Attributes:
        attempts: number of attempts in all.
        base_seconds: pause after the first failure, doubled each time up to ``max_seconds``, with half of it random so
            that many readers do not return at once.
        timeout_seconds: longest wait for a connection, and between two pieces of an answer.
    """

    attempts: int = 6
    base_seconds: float = 0.5
    max_seconds: float = 20.0
    timeout_seconds: float = 30.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the given (0-based) failed attempt."""
        return min(self.max_seconds, self.base_seconds * 2**attempt) * (0.5 + 0.5 * random.random())


DEFAULT_RETRY = Retry()


def is_remote(path: object, option: str = "") -> bool:
    """Whether a path is an address of one of ``SCHEMES``.

    Args:
        path: a path or an address.
        option: that names it, for the message.

    Raises:
        DataError: an address with another scheme.
    """
    text = str(path)
    if "://" not in text:
        return False
    if text.split("://", 1)[0] not in SCHEMES:
        raise DataError(
            f"unknown kind of address {text.split('://', 1)[0]}://", option, f"use {', '.join(SCHEMES)} or a path"
        )
    return True


def join(root: object, name: str) -> str:
    """Address or path of something below a root."""
    return f"{str(root).rstrip('/')}/{name}"


def shown(url: str) -> str:
    """An address without user, password and query, for messages."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


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


# ------------------------------------------------------------------------------------------------------ protocols


class _PerProcess:
    """Clients of this process: connections must not be shared with a forked child."""

    def __init__(self, make: Callable[[str, Retry], Any]) -> None:
        self._make, self._owner = make, os.getpid()
        self._clients: dict[tuple[Any, ...], Any] = {}

    def get(self, kind: str, retry: Retry) -> Any:
        if self._owner != os.getpid():
            self._clients, self._owner = {}, os.getpid()
        # whoever names another server or other keys in the environment, as in a notebook, is not left with the former
        named = () if kind == "http" else tuple(sorted(item for item in os.environ.items() if item[0][:4] == "AWS_"))
        key = (kind, retry, named)
        if key not in self._clients:
            self._clients[key] = self._make(kind, retry)
        return self._clients[key]


def _make_client(kind: str, retry: Retry) -> Any:
    try:
        if kind == "http":
            import urllib3

            timeout = urllib3.Timeout(connect=retry.timeout_seconds, read=retry.timeout_seconds)
            return urllib3.PoolManager(retries=False, timeout=timeout, maxsize=AT_ONCE)
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed", f"{kind} addresses", 'pip install "m4oe_ds[remote]"'
        ) from None
    settings = Config(
        connect_timeout=retry.timeout_seconds, read_timeout=retry.timeout_seconds, retries={"total_max_attempts": 1}
    )
    if kind == "gs":  # the S3-compatible interface of Google Cloud Storage, with HMAC keys in the AWS variables
        return boto3.client("s3", config=settings, endpoint_url="https://storage.googleapis.com")
    return boto3.client("s3", config=settings)


_clients = _PerProcess(_make_client)


def _http_answer(url: str, headers: dict[str, str], retry: Retry, method: str = "GET") -> Any:
    import urllib3

    parts = urlsplit(url)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = {**headers, **urllib3.make_headers(basic_auth=secret)}
    try:
        answer = _clients.get("http", retry).request(method, url, headers=headers, preload_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(type(error).__name__) from None
    if answer.status in (200, 206):
        return answer
    answer.release_conn()
    if answer.status >= 500 or answer.status in (408, 425, 429):
        raise Transient(f"status {answer.status}")
    raise Refused(
        f"the server answers with status {answer.status}",
        shown(url),
        "check the address and the access rights",
        answer.status,
        answer.headers.get("Location", ""),
    )


def _http_chunks(url: str, start: int, stop: int | None, retry: Retry) -> Iterator[bytes]:
    """Bytes from ``start``; to ``stop``, or to the end."""
    import urllib3

    wanted = f"bytes={start}-{'' if stop is None else stop - 1}"
    answer = _http_answer(url, {"Range": wanted} if start or stop is not None else {}, retry)
    try:
        if answer.status == 200 and (start or stop is not None):
            raise DataError(
                "the server does not serve parts of files (no range requests)",
                shown(url),
                "set data.cache_dir: then whole shards are fetched",
            )
        yield from answer.stream(_CHUNK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(type(error).__name__) from None
    finally:
        answer.release_conn()


def _s3_call(url: str, retry: Retry, operation: str, **arguments: Any) -> Any:
    from botocore import exceptions

    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")  # a key may hold ? and #, which mean nothing here
    client = _clients.get(scheme, retry)
    try:
        return getattr(client, operation)(Bucket=bucket, Key=key.lstrip("/"), **arguments)
    except exceptions.ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= 500 or status == 429:
            raise Transient(f"status {status}") from None
        raise Refused(
            f"the storage answers with status {status}", shown(url), "check the address and the access rights", status
        ) from None
    except (exceptions.NoCredentialsError, exceptions.NoRegionError, exceptions.PartialCredentialsError) as error:
        raise EnvironmentProblem(
            f"no access to the storage ({type(error).__name__})",
            shown(url),
            "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION, or a profile",
        ) from None
    except (exceptions.BotoCoreError, OSError) as error:
        raise Transient(type(error).__name__) from None


def _s3_chunks(url: str, start: int, stop: int | None, retry: Retry) -> Iterator[bytes]:
    import urllib3
    from botocore.exceptions import BotoCoreError

    arguments = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
    body = _s3_call(url, retry, "get_object", **arguments)["Body"]
    try:
        yield from body.iter_chunks(_CHUNK)
    except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(type(error).__name__) from None
    finally:
        body.close()


def chunks(url: str, start: int = 0, stop: int | None = None, retry: Retry = DEFAULT_RETRY) -> Iterator[bytes]:
    """One attempt at the bytes of a remote file.

    Raises:
        Transient: the failure may pass.
        DataError: the failure will not pass.
        EnvironmentProblem: a package or credentials missing.
    """
    if url.startswith(("s3://", "gs://")):
        return _s3_chunks(url, start, stop, retry)
    return _http_chunks(url, start, stop, retry)


def attempt(url: str, retry: Retry, call: Callable[[], Any]) -> Any:
    """The result of ``call``, tried again while its failures may pass.

    Raises:
        DataError: still failing after the last attempt.
    """
    reason = ""
    for number in range(retry.attempts):
        try:
            return call()
        except Transient as failure:
            reason = str(failure)
            _logger.debug("%s: attempt %d failed: %s", shown(url), number + 1, reason)
            if number + 1 < retry.attempts:
                time.sleep(retry.pause(number))
    raise DataError(
        f"cannot be read after {retry.attempts} attempts ({reason})", shown(url), "check the server and the network"
    )


# --------------------------------------------------------------------------------------------------- what readers use


def open_range(path: str, start: int, stop: int, retry: Retry = DEFAULT_RETRY) -> bytes:
    """Bytes ``start`` to ``stop`` of a shard.

    Raises:
        DataError: missing file, fewer bytes than requested, or a server that keeps failing.
    """
    if is_remote(path):

        def read() -> bytes:
            data = b"".join(chunks(path, start, stop, retry))
            if len(data) != stop - start:
                raise Transient(f"{len(data)} bytes instead of {stop - start}")
            return data

        return bytes(attempt(path, retry, read))
    try:
        stream = _files.get(path)
        stream.seek(start)
        data = stream.read(stop - start)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None
    if len(data) != stop - start:
        raise DataError(f"ends at byte {start + len(data)}, {stop} expected", path, "copy the shard again")
    return data


def read_whole(path: str, retry: Retry = DEFAULT_RETRY) -> bytes:
    """All bytes of a file or address, such as a manifest.

    Raises:
        DataError: missing, or a server that keeps failing.
    """
    if is_remote(path):
        return bytes(attempt(path, retry, lambda: b"".join(chunks(path, retry=retry))))
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None


def size_of(url: str, retry: Retry = DEFAULT_RETRY) -> int:
    """Length in bytes of a remote file.

    Raises:
        DataError: missing, of unknown length, or a server that keeps failing.
    """

    def ask() -> int:
        if url.startswith(("s3://", "gs://")):
            return int(_s3_call(url, retry, "head_object")["ContentLength"])
        answer = _http_answer(url, {}, retry, "HEAD")
        answer.release_conn()
        length = answer.headers.get("Content-Length")
        if length is None:
            raise DataError("the server does not say how long the file is", shown(url), "set data.verify=full")
        return int(length)

    return int(attempt(url, retry, ask))


def exists(url: str, retry: Retry = DEFAULT_RETRY) -> bool:
    """Whether a remote file is there; a folder is none.

    Raises:
        DataError: a server that keeps failing, or (as :class:`Refused`) one that does not say, such as for lack of
            rights.
    """

    def ask() -> bool:
        try:
            if url.startswith(("s3://", "gs://")):
                _s3_call(url, retry, "head_object")
            else:
                _http_answer(url, {}, retry, "HEAD").release_conn()
        except Refused as refusal:
            folder = refusal.status in _MOVED and urlsplit(refusal.location).path == f"{urlsplit(url).path}/"
            if refusal.status in _NOT_THERE or folder:
                return False
            raise
        return True

    return bool(attempt(url, retry, ask))


def fetch(url: str, path: Path, retry: Retry = DEFAULT_RETRY) -> None:
    """Copies a remote file into a local one, piece by piece.

    Raises:
        DataError: missing, a server that keeps failing, or a full disk.
    """

    def copy() -> None:
        with path.open("wb") as stream:
            for part in chunks(url, retry=retry):
                stream.write(part)

    try:
        attempt(url, retry, copy)
    except OSError as error:
        raise DataError(
            f"cannot write what is fetched: {error.strerror}", str(path.parent), "make room, or set TMPDIR elsewhere"
        ) from None
