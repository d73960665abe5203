"""Turns an archive into shards: ``python -m data_tools.convert --dataset embed --root DIR --out DIR``.

Reads the tables, decides labels, images and splits, then decodes every image, cuts it to the breast and writes shards
without anything that names a person. The bytes of the shards depend on the archive, the options and the secret, not on
the number of processes. A conversion that was killed continues where it stopped when the command is given again; with
``--part 3/16`` sixteen jobs share the work and the last one finishes it. Next to ``--out`` it leaves
``<out>.mapping.csv`` (which key is which exam) and, unless ``--salt-file`` is given, ``<out>.secret``: both stay
private.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from data_tools.convert.options import ConvertOptions
from m4oe_ds.command_line import check_output, guarded


def convert(options: ConvertOptions) -> dict[str, Any]:
    """Converts an archive.

    Returns:
        The content of ``conversion.json``; for a dry run or an unfinished part the counts of the tables.

    Raises:
        DataError: an archive, table, column or option that cannot be used, or too many bad images.
        EnvironmentProblem: no decoder for a transfer syntax of the archive.
    """
    options.check()
    check_output(options.out, "--out")
    # here rather than above: help and refused options need no numerical libraries, which take seconds to load
    from data_tools.convert.conversion import convert_archive

    return convert_archive(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    given = sys.argv[1:] if arguments is None else arguments
    summary = (__doc__ or "").split("\n\n")[0]
    return guarded(lambda: convert(ConvertOptions.from_arguments(given, summary)))
