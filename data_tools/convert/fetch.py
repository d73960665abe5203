"""Brings the files of one sample here for as long as it is converted, where they lie below an address."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from data_tools.convert.sample import SampleJob
from m4oe_ds.data import sources
from m4oe_ds.data.roots import nameless
from m4oe_ds.errors import UserError

LONGEST_SUFFIX = 8


def is_away(job: SampleJob) -> bool:
    """Whether a sample has files below an address; they are those of a card's table, never of an archive."""
    if job.exam is None:
        return False
    masks = (file.pattern for files in job.exam.layers.values() for file in files if file is not None)
    images = (path for paths in job.images.values() for path in paths)
    return any(sources.is_remote(path) for path in (*images, *masks))


@contextmanager
def fetched(job: SampleJob) -> Iterator[SampleJob]:
    """The same work with files that are here; those that were fetched are removed afterwards.

    Raises:
        DataError: a file that is there no more, a server that keeps failing, a full disk; the message has the key of
            the sample and no file name.
        EnvironmentProblem: a package or credentials missing.
    """
    if not is_away(job):
        yield job
        return
    assert job.exam is not None
    with tempfile.TemporaryDirectory(prefix="m4oe-") as folder:
        here: dict[str, str] = {}

        def bring(what: str, path: str) -> str:
            if path not in here and sources.is_remote(path):
                local = Path(folder, f"{len(here)}{_suffix(path)}")
                try:
                    sources.fetch(path, local)
                except UserError as error:
                    what = f"a file of {what} of sample {job.meta['key']} cannot be fetched"
                    raise nameless(error, what, path) from None
                here[path] = str(local)
            return here.get(path, path)

        images = {name: tuple(bring(name, path) for path in paths) for name, paths in job.images.items()}
        layers = {
            task: tuple(file and replace(file, pattern=bring(task, file.pattern)) for file in files)
            for task, files in job.exam.layers.items()
        }
        yield replace(job, images=images, exam=replace(job.exam, layers=layers))


def _suffix(url: str) -> str:
    """What tells readers the kind of a file: ``.png``, ``.nii.gz``."""
    path = url if url.startswith(("s3://", "gs://")) else urlsplit(url).path
    known = [one for one in PurePosixPath(path).suffixes[-2:] if one[1:].isalnum() and len(one) <= LONGEST_SUFFIX]
    return "".join(known)
