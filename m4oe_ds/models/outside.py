"""Models from outside the package, written ``package.module:Class`` or ``package.module:function``.

What can be known of one without importing it (and so without torch) is read from its source: whether the module is
there, whether it has that name, and its ``SYSTEM``, a dictionary of literals with fields of
:class:`m4oe_ds.models.systems.Entry` that differ from their defaults.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import symtable
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from m4oe_ds.models.interface import ModelOutput, ModelSpec, MultiModalModel

FORM = "package.module:Class"
DECLARATION = "SYSTEM"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PATH = "put its folder on PYTHONPATH, or install it with pip"
_PARTS = ("encode", "fuse", "predict")


def is_outside(name: str) -> bool:
    """Whether a name is written as one from outside."""
    return ":" in name


def declared(name: str) -> dict[str, Any]:
    """The ``SYSTEM`` of the module of a name, without importing it; empty where it has none, or no source.

    Raises:
        ConfigError: the name has another form, there is no such module, it has no such name, its source does not
            parse, or its SYSTEM is no dictionary of literals.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a model of one's own", "model.name", f"write {FORM}")
    module, _, attribute = name.partition(":")
    spec = _find(module)
    source = _source(spec)
    if source is None:
        return {}
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
        raise ConfigError(f"{module} has no {attribute}{nearest(attribute, sorted(bound))}", "model.name", where)
    return _declaration(tree, where)


def load(name: str) -> Any:
    """The object that a name stands for, imported.

    Raises:
        ConfigError: its module is not there, cannot be imported, or has no such name.
    """
    module, _, attribute = name.partition(":")
    spec = _find(module)
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever a module of the user's raises; --debug shows where
        what = f"importing {module} failed: {type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(what, spec.origin or module, "`m4oe --debug ...` shows the traceback") from error
    if not hasattr(imported, attribute):
        known = [one for one in vars(imported) if not one.startswith("_")]
        raise ConfigError(f"{module} has no {attribute}{nearest(attribute, known)}", "model.name", str(spec.origin))
    return getattr(imported, attribute)


def build(name: str, *arguments: Any) -> MultiModalModel:
    """The model of a class or function from outside; its first answer is checked when it comes.

    Args:
        name: as in ``model.name``.
        *arguments: specification, ``model`` section of the configuration, factory of experts.

    Raises:
        ConfigError: it is not called with these, gives something else, or lacks a method.
    """
    from m4oe_ds.models.interface import MultiModalModel

    make = load(name)
    if not callable(make) or (inspect.isclass(make) and not issubclass(make, MultiModalModel)):
        raise _wrong(
            name, "is not a subclass of m4oe_ds.models.interface.MultiModalModel, or a function that gives one"
        )
    try:
        inspect.signature(make).bind(*arguments)
    except TypeError as error:
        raise _wrong(name, f"cannot be called with (spec, config, experts_factory): {error}") from None
    model = make(*arguments)
    if not isinstance(model, MultiModalModel):
        raise _wrong(name, f"gave a {type(model).__name__}, not a MultiModalModel")
    kind = type(model)
    lacking = [part for part in _PARTS if getattr(kind, part) is getattr(MultiModalModel, part)]
    if lacking and kind.forward is MultiModalModel.forward:
        raise _wrong(name, f"does not define {', '.join(lacking)}")
    model.spec = arguments[0]
    handle = model.register_forward_hook(_first_answer(name, model.spec, lambda: handle.remove()))
    return model


def _first_answer(name: str, spec: ModelSpec, done: Callable[[], None]) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that looks at one answer: whether it has logits of the right shape for every task."""
    from m4oe_ds.models.interface import ModelOutput

    def check(_: nn.Module, given: Any, output: Any) -> None:
        done()
        if not isinstance(output, ModelOutput):
            raise _wrong(name, f"answers with a {type(output).__name__}, not a ModelOutput")
        for task in spec.tasks:
            _check_logits(name, output, task.name, task.num_classes, spec.answer_shape(task) if task.dense else ())

    return check


def _check_logits(name: str, output: ModelOutput, task: str, count: int, dense: tuple[int, ...]) -> None:
    wanted = dense or (count,)
    if task not in output.logits:
        raise _wrong(name, f"gives no logits of {task}, only of {', '.join(output.logits) or 'nothing'}")
    shape = tuple(output.logits[task].shape)
    if shape[1:] != wanted:
        sizes = ", ".join(["B", *map(str, wanted)])
        raise _wrong(name, f"gives logits of {task} of shape {list(shape)}, not [{sizes}]")


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"{name} {what}", "model.name", "docs/guide/add-a-method.md shows a complete one")


def _find(module: str) -> ModuleSpec:
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
            raise ConfigError(f"importing {top} failed: {error}", "model.name", "install what it needs") from error
        spec = None
    except Exception as error:
        what = f"importing {top} failed: {type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(what, "model.name", "`m4oe --debug ...` shows the traceback") from error
    if spec is None:
        raise ConfigError(f"no module {module!r}", "model.name", _PATH)
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
