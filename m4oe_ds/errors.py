"""Errors a user can act on: one line that says what is wrong, where it came from and what to do.

``train.py``, ``m4oe`` and ``data_tools`` print a :class:`UserError` without a traceback and exit with its code;
any other exception is a bug in this package and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input of any kind. ``str(error)`` is the single line shown to the user.

    Args:
        what: what is wrong, with the value seen.
        where: the file, line, option, environment variable or key it came from; empty if ``what`` says it.
        fix: what to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        line = f"{where}: {what}" if where else what
        super().__init__(f"{line}; {fix}" if fix else line)


class ConfigError(UserError):
    """A configuration file, a ``--set`` option, the DeepSpeed JSON, or a contradiction between them."""

    exit_code = 3


class DataError(UserError):
    """An archive, a table, a DICOM file, a shard or a manifest."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint that does not verify or does not fit this run."""

    exit_code = 5


class EnvironmentProblem(UserError):
    """Launch variables, hardware, or a missing package."""

    exit_code = 6


class ShapeError(ValueError):
    """A tensor whose shape contradicts the layer or the other arguments (a programming error of the caller)."""
