"""What every command does at its ends: refuses an output that cannot be, and turns an error into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from m4oe_ds.errors import EnvironmentProblem, UserError

INTERRUPTED = 130  # as shells have it
_LESS = "use fewer samples per forward or a smaller model; `m4oe plan` says what a job needs"


def guarded(work: Callable[[], object], *, debug: bool = False, prefix: str = "") -> int:
    """Runs a command; what a user can mend becomes one line on standard error, everything else keeps its traceback.

    Args:
        work: returns the exit status, or None for 0.
        debug: let user errors end in a traceback, too.
        prefix: stands before the line, such as the number of the rank.

    Returns:
        The exit status.
    """
    try:
        status = _flushed(work)
    except UserError as error:
        if debug:
            raise
        return _say(f"{prefix}error: {error}", error.exit_code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug or not error.filename:
            raise
        problem = EnvironmentProblem(error.strerror or type(error).__name__, str(error.filename), _remedy(error))
        return _say(f"{prefix}error: {problem}", problem.exit_code)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if debug or package in ("m4oe_ds", "data_tools"):
            raise
        what = f"{package or 'a package'} cannot be imported: {_first_line(error)}"
        problem = EnvironmentProblem(what, fix="`m4oe doctor --quick` looks at the packages")
        return _say(f"{prefix}error: {problem}", problem.exit_code)
    except (MemoryError, RuntimeError) as error:
        if debug or not _is_out_of_memory(error):
            raise
        problem = EnvironmentProblem(_first_line(error), fix=_LESS)
        return _say(f"{prefix}error: {problem}", problem.exit_code)
    except KeyboardInterrupt:
        return _say(f"{prefix}stopped", INTERRUPTED)
    return int(status) if isinstance(status, int) else 0


def _flushed(work: Callable[[], object]) -> object:
    """Runs the work; what it printed is out at its end, where a reader that has left can still be borne."""
    try:
        status = work()
    except SystemExit:  # of a parser that has printed
        if sys.stdout is not None:
            sys.stdout.flush()
        raise
    if sys.stdout is not None:
        sys.stdout.flush()
    return status


def check_output(folder: Path, option: str) -> None:
    """An output folder, or the nearest one above it that exists, must be one that can be written to.

    Args:
        folder: to be made, or to be written into.
        option: that names it.

    Raises:
        EnvironmentProblem: it is not.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        what = "is a file, not a folder" if above == folder else f"{above} is a file, not a folder"
        raise EnvironmentProblem(what, str(folder), f"choose another {option}")
    # the kernel's own folders can be written to by nobody, whatever their rights say
    if not os.access(above, os.W_OK | os.X_OK) or above.absolute().parts[1:2] in (("proc",), ("sys",)):
        raise EnvironmentProblem(
            f"cannot write to {above}", str(folder), f"choose another {option}, or change its rights"
        )


def check_file(path: Path, option: str, suffix: str) -> None:
    """An output file must have the suffix of what is written, and lie where a file can be written.

    A slip such as ``--out my.yaml`` would otherwise write over a file of another kind.

    Args:
        path: the file.
        option: that names it.
        suffix: of the kind of file, such as ``.json``.

    Raises:
        EnvironmentProblem: it does not.
    """
    if path.suffix != suffix:
        raise EnvironmentProblem(f"is not named *{suffix}", str(path), f"choose another {option}")
    if path.is_dir():
        raise EnvironmentProblem("is a folder", str(path), f"choose another {option}")
    check_output(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise EnvironmentProblem("cannot be written to", str(path), f"choose another {option}, or change its rights")


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "change its rights, or choose another place"
    if isinstance(error, FileNotFoundError):
        return "check the path"
    return "check the disk, or choose another place"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy asked for more than there is; told by names, so that torch need not be imported."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "Unable to allocate")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    told = next(iter(str(error).splitlines()), "")
    return "this machine has too little memory" + (f" ({told})" if told else "")


def _say(line: str, status: int) -> int:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
    return status
