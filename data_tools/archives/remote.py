"""Tables and files of one's own data below an address: fetched or asked for, never listed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from data_tools.archives.files import Files, Outcome
from m4oe_ds.data import sources
from m4oe_ds.data.roots import Address, Root, nameless
from m4oe_ds.errors import DataError, UserError
from m4oe_ds.progress import Progress


def files_below(root: Root, missing: frozenset[str]) -> Files:
    """What finds the files of a table below a root; for the arguments see :class:`data_tools.archives.files.Files`."""
    return RemoteFiles(root, missing) if isinstance(root, Address) else Files(root, missing)


class RemoteFiles(Files):
    """Finds files below an address: a request for each, many at once, before the first is asked for.

    Args:
        root: address of the data; no name leads out of it.
        missing: words that mean that a field is empty, in lower case.
    """

    def __init__(self, root: Address, missing: frozenset[str]) -> None:
        super().__init__(root, missing)
        self._address = root
        self._there: dict[str, bool] = {}

    def look(self, patterns: Iterable[str], rows: Iterable[tuple[int, Mapping[str, str]]]) -> None:
        """Asks the server for every file that the rows name, each once.

        Raises:
            DataError: a server that keeps failing or refuses; the message tells the first row that names the file.
            EnvironmentProblem: a package or credentials missing.
        """
        first: dict[str, int] = {}
        patterns = list(patterns)
        for number, row in rows:
            for pattern in patterns:
                text = self.named_by(pattern, row)
                name = None if text is None else _confined(text)
                if name:
                    first.setdefault(name, number)
        todo = [name for name in first if name not in self._there]

        def ask(name: str) -> bool:
            url = (self._address / name).url
            try:
                return sources.exists(url)
            except UserError as error:
                raise nameless(error, f"a file of row {first[name]} cannot be looked for", url) from None

        with (
            Progress("looking for files", len(todo), "files").start() as progress,
            ThreadPoolExecutor(sources.AT_ONCE) as pool,
        ):
            for part in (todo[:1], todo[1:]):  # the first alone: clients of storage are not made by several threads
                for name, there in zip(part, pool.map(ask, part), strict=True):
                    self._there[name] = there
                    progress.update()

    def _place(self, text: str, folders: bool) -> tuple[Outcome, str]:
        name = _confined(text)
        if name is None:
            return "outside", ""
        if folders and _like_a_folder(text):
            return "folder", ""
        return ("found", name) if self._there.get(name, False) else ("absent", "")

    def _instead(self, pattern: str) -> str:
        return f"check the pattern and --root {self.root}"


def _confined(text: str) -> str | None:
    """A name below a root; None for one that leads elsewhere, empty for the root itself."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text or "://" in text:
        return None
    return "/".join(path.parts)


def _like_a_folder(text: str) -> bool:
    """Whether a name has no suffix of a file; numbers after a dot are those of a series."""
    suffix = PurePosixPath(text).suffix[1:]
    return text.endswith("/") or not suffix or suffix.isdigit()


def table_name(root: Root, name: str) -> str:
    """What messages call a table: its path or, of one below an address, its address."""
    return name if Path(name).is_absolute() else str(root / name)


@contextmanager
def table_below(root: Root, name: str) -> Iterator[Path]:
    """A table as a local file; one below an address lies in a temporary folder for as long as it is read.

    Raises:
        DataError: it cannot be fetched; also what is raised while it is read, then with its address.
    """
    if isinstance(root, Path) or Path(name).is_absolute():
        yield Path(name) if isinstance(root, Address) else root / name
        return
    address = root / name
    with tempfile.TemporaryDirectory(prefix="m4oe-") as folder:
        path = Path(folder, "table").with_suffix(PurePosixPath(name).suffix)
        try:
            sources.fetch(address.url, path)
            yield path
        except sources.Refused as refusal:
            if refusal.status != 404:
                raise
            raise DataError(
                f"the table {name} is not here", str(root), "check `source.table` of the card, and --root"
            ) from None
        except DataError as error:
            if error.where != str(path):
                raise
            raise DataError(error.what, table_name(root, name), error.fix) from None
