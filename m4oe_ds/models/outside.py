"""What an option names from outside the package, ``package.module:Class`` or ``package.module:function``: models, and
trackers of a run.

What can be known of one without importing it (and so without torch) is read from its source: whether the module is
there, whether it has that name, and, of a model, its ``SYSTEM``, a dictionary of literals with fields of
:class:`m4oe_ds.models.systems.Entry` that differ from their defaults.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import symtable
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import nearest

_MODEL = "model.name"
FORM = "package.module:Class"
DECLARATION = "SYSTEM"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PATH = "put its folder on PYTHONPATH, or install it with pip"


def is_outside(name: str) -> bool:
    """Whether a name is written as one from outside."""
    return ":" in name


def is_written(name: str) -> bool:
    """Whether a name has the form of one from outside."""
    return _NAME.fullmatch(name) is not None


def declared(name: str) -> dict[str, Any]:
    """The ``SYSTEM`` of the module of a model's name, without importing it; empty where it has none, or no source.

    Raises:
        ConfigError: see :func:`check`, or its SYSTEM is no dictionary of literals.
    """
    found = check(name)
    return {} if found is None else _declaration(*found)


def check(name: str, option: str = _MODEL) -> tuple[ast.Module, str] | None:
    """The syntax tree and the file of the module of a name, without importing it; None where it has no source.

    Args:
        name: as the option has it.
        option: that has it.

    Raises:
        ConfigError: the name has another form, there is no such module, it has no such name, or its source does not
            parse.
    """
    if not is_written(name):
        what = "a model" if option == _MODEL else "something"
        raise ConfigError(f"{name!r} is not {what} of one's own", option, f"write {FORM}")
    module, _, attribute = name.partition(":")
    spec = _find(module, option)
    source = _source(spec)
    if source is None:
        return None
    where = spec.origin or module
    try:
        table, tree = symtable.symtable(source, where, "exec"), ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"{error.msg}", f"{where}:{error.lineno}", "mend the syntax") from error
    bound = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
    hidden = "__getattr__" in bound or any(
        isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body
    )
    if attribute not in bound and not hidden:
        raise ConfigError(f"{module} has no {attribute}{nearest(attribute, sorted(bound))}", option, where)
    return tree, where


def load(name: str, option: str = _MODEL) -> Any:
    """The object that a name stands for, imported.

    Args:
        name: as the option has it.
        option: that has it.

    Raises:
        ConfigError: its module is not there, cannot be imported, or has no such name.
    """
    module, _, attribute = name.partition(":")
    spec = _find(module, option)
    if os.environ.get("RANK", "0") == "0" and module not in sys.modules:  # a run of somebody else's may name it
        sys.stderr.write(f"{option}: code of {spec.origin}\n")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever a module of the user's raises; --debug shows where
        what = f"importing {module} failed: {type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(what, spec.origin or module, "`m4oe --debug ...` shows the traceback") from error
    if not hasattr(imported, attribute):
        known = [one for one in vars(imported) if not one.startswith("_")]
        raise ConfigError(f"{module} has no {attribute}{nearest(attribute, known)}", option, str(spec.origin))
    return getattr(imported, attribute)


def _find(module: str, option: str) -> ModuleSpec:
    """Where a module is; packages above it are imported on the way.

    Raises:
        ConfigError: there is none, or a package above it cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # the ranks, started with python -m, look there too
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"importing {top} failed: {error}", option, "install what it needs") from error
        spec = None
    except Exception as error:
        what = f"importing {top} failed: {type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(what, option, "`m4oe --debug ...` shows the traceback") from error
    if spec is None:
        raise ConfigError(f"no module {module!r}", option, _PATH)
    return spec


def _source(spec: ModuleSpec) -> str | None:
    """Source of a module; None of one that is compiled, or a folder without ``__init__.py``."""
    get = getattr(spec.loader, "get_source", None)
    try:
        source = None if get is None else get(spec.name)
    except (ImportError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", spec.origin or spec.name, "mend the file") from error
    return source if isinstance(source, str) else None


def _declaration(tree: ast.Module, where: str) -> dict[str, Any]:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(one, ast.Name) and one.id == DECLARATION for one in targets):
            try:
                content = ast.literal_eval(value)
            except ValueError:
                content = None
            if not isinstance(content, dict):
                raise ConfigError(f"{DECLARATION} must be a dictionary of literals", f"{where}:{node.lineno}")
            return content
    return {}
