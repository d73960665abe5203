"""The folder of somebody's data: here, or below an address. ``pathlib`` would make one slash of the two of ``s3://``.

File names of one's own data may name people, so nothing here puts one into a message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from m4oe_ds.data import sources
from m4oe_ds.errors import DataError, EnvironmentProblem, UserError

PHANTOM = "phantom.json"


@dataclass(frozen=True)
class Address:
    """A folder or file on a server; as text it is what messages may say, without user, password and query.

    Attributes:
        url: the whole address.
    """

    url: str = field(repr=False)

    def __truediv__(self, name: str) -> Address:
        """What lies below it; a name is a plain name of a file, and a query of the folder is one of its files too."""
        if self.url.startswith(("s3://", "gs://")):
            return Address(sources.join(self.url, name))
        parts = urlsplit(self.url)
        return Address(parts._replace(path=sources.join(parts.path, quote(name)), fragment="").geturl())

    def __str__(self) -> str:
        return sources.shown(self.url)

    def absolute(self) -> Address:
        """Itself: an address does not depend on the folder that one is in."""
        return self


Root = Path | Address


def root_of(text: str, option: str = "--root") -> Root:
    """The folder that an option names.

    Args:
        text: its value.
        option: its name.

    Raises:
        DataError: an address of another kind, or one without a host.
    """
    if not sources.is_remote(text, option):
        return Path(text)
    try:
        parts = urlsplit(text)
        host = bool(parts.hostname) and parts.port != 0  # a port that is no number raises here
    except ValueError:
        host = False
    if not host:
        raise DataError("an address without a host that can be read", option, "use e.g. https://host/folder")
    return Address(text)


def located(root: Root, name: str) -> str:
    """The path, or whole address, of a file below a root."""
    below = root / name
    return below.url if isinstance(below, Address) else str(below)


def is_synthetic(root: Root) -> bool:
    """Whether a folder says that a generator of this package made it.

    Raises:
        DataError: a server that keeps failing.
    """
    if isinstance(root, Path):
        return (root / PHANTOM).is_file()
    try:
        return sources.exists((root / PHANTOM).url)
    except sources.Refused:  # storage that does not let one list refuses what is not there
        return False


def nameless(error: UserError, what: str, url: str) -> UserError:
    """The error of a file of a sample in other words: of its address only the server is said.

    Args:
        error: as :mod:`m4oe_ds.data.sources` raises it.
        what: which file, without its name.
        url: its address.
    """
    kind = EnvironmentProblem if isinstance(error, EnvironmentProblem) else DataError
    server = "/".join(sources.shown(url).split("/")[:3])
    return kind(f"{what}: {error.what}", server, error.fix)
