"""Direction of imports between the parts of the package, read from the source without importing it.

Imports inside functions and under TYPE_CHECKING count too, except in ``cli.py``, whose commands import what they need.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("m4oe_ds", "data_tools")


@dataclass(frozen=True)
class Import:
    """One imported module as written at ``path:line``; ``names`` are all dotted names it may stand for."""

    path: Path
    line: int
    importer: str
    names: tuple[str, ...]
    lazy: bool


@dataclass(frozen=True)
class Rule:
    """``importers`` must not import ``forbidden``; or, of our packages, only ``allowed`` (and themselves)."""

    text: str
    importers: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    allowed: tuple[str, ...] | None = None

    def broken_by(self, entry: Import) -> bool:
        if not any(within(entry.importer, prefix) for prefix in self.importers):
            return False
        if entry.lazy and entry.importer.split(".")[-1] == "cli":
            return False
        if any(within(name, prefix) for name in entry.names for prefix in self.forbidden):
            return True
        if self.allowed is None or not any(within(entry.names[0], package) for package in PACKAGES):
            return False
        permitted = (*self.allowed, *self.importers)
        return not any(within(name, prefix) for name in entry.names for prefix in permitted)


def ours(*parts: str) -> tuple[str, ...]:
    return tuple(f"m4oe_ds.{part}" for part in parts)


RULES = [
    Rule(
        "errors, config and data.schema import no torch",
        ours("errors", "config", "data.schema"),
        ("torch", "deepspeed"),
    ),
    Rule(
        "layers are single-process maths: no config, data, parallel, models, training, torch.distributed or deepspeed",
        ours("layers"),
        (*ours("config", "config_loader", "data", "parallel", "models", "training"), "torch.distributed", "deepspeed"),
    ),
    Rule(
        "losses import no models, parallel, training or torch.distributed",
        ours("losses"),
        (*ours("models", "parallel", "training"), "torch.distributed", "deepspeed"),
    ),
    Rule("models import no losses, parallel or training", ours("models"), ours("losses", "parallel", "training")),
    Rule("parallel imports no models, losses or data", ours("parallel"), ours("models", "losses", "data")),
    Rule(
        "data imports no models, config, parallel or training",
        ours("data"),
        ours("models", "config", "config_loader", "parallel", "training"),
    ),
    Rule("evaluation imports no training", ours("evaluation"), ours("training")),
    Rule("report reads files of a run: no torch, no deepspeed", ours("report"), ("torch", "deepspeed")),
    Rule("data_tools import only errors and data of m4oe_ds", ("data_tools",), allowed=ours("errors", "data")),
    Rule("cli answers --help at once: heavy imports inside the commands", ours("cli"), ("torch", "deepspeed", "timm")),
]


def within(name: str, prefix: str) -> bool:
    """True if dotted ``name`` is ``prefix`` or lies below it."""
    return name == prefix or name.startswith(f"{prefix}.")


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import statement, ``importlib.import_module("literal")`` and use of ``torch.distributed`` in a file."""
    importer = module_name(path, root)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        for names in names_of(node, package):
            yield Import(path, node.lineno, importer, names, lazy=id(node) in inside)


def names_of(node: ast.AST, package: str) -> Iterator[tuple[str, ...]]:
    """Dotted names a node imports: one tuple per imported thing, all readings of ``from a import b`` together."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.name,)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*anchor, base] if base else anchor)
        for alias in node.names:
            yield (base, f"{base}.{alias.name}")  # b may be a module of a, or a name in it
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if (node.value.id, node.attr) == ("torch", "distributed"):
            yield ("torch.distributed",)
    elif isinstance(node, ast.Call) and node.args:
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        first = node.args[0]
        if (
            called in ("import_module", "__import__")
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
        ):
            yield (first.value,)


def violations(rule: Rule, root: Path) -> list[str]:
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for entry in imports_of(path, root):
                if rule.broken_by(entry):
                    found.append(f"{path.relative_to(root)}:{entry.line}: imports {entry.names[-1]}; rule: {rule.text}")
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.text)
def test_imports_point_one_way(rule: Rule) -> None:
    found = violations(rule, ROOT)
    assert not found, "\n".join(["", *found])


def test_the_package_is_found() -> None:
    assert (ROOT / "m4oe_ds" / "layers" / "mtoe.py").exists()
    assert any(entry.names[0] == "torch" for entry in imports_of(ROOT / "m4oe_ds" / "layers" / "mtoe.py", ROOT))


def test_leaves_load_without_torch() -> None:
    """What a package's ``__init__`` pulls in counts as well; only running it shows that."""
    script = (
        "import sys; import m4oe_ds, m4oe_ds.errors, m4oe_ds.config, m4oe_ds.data.schema;"
        "print([name for name in ('torch', 'deepspeed', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


PLANTED = {
    "torch in config": ("m4oe_ds/config.py", "import torch.nn as nn", 0),
    "lazy torch in schema": ("m4oe_ds/data/schema.py", "def f():\n    from torch import Tensor", 0),
    "layers to data": ("m4oe_ds/layers/x.py", "from m4oe_ds import data", 1),
    "layers to config_loader": ("m4oe_ds/layers/x.py", "import m4oe_ds.config_loader", 1),
    "layers to torch.distributed": ("m4oe_ds/layers/x.py", "from torch import distributed as dist", 1),
    "layers use torch.distributed": ("m4oe_ds/layers/x.py", "import torch\nrank = torch.distributed.get_rank()", 1),
    "relative, two levels up": ("m4oe_ds/losses/x.py", "from ..models.m4oe import M4oE", 2),
    "relative from a package": ("m4oe_ds/losses/__init__.py", "from .. import training", 2),
    "losses under TYPE_CHECKING": (
        "m4oe_ds/losses/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import m4oe_ds.parallel.groups",
        2,
    ),
    "models to losses": ("m4oe_ds/models/baselines/x.py", "from m4oe_ds.losses import focal", 3),
    "models by name": ("m4oe_ds/models/x.py", "import importlib\nimportlib.import_module('m4oe_ds.parallel')", 3),
    "parallel to data": ("m4oe_ds/parallel/x.py", "from m4oe_ds.data.batch import Batch", 4),
    "data to config": ("m4oe_ds/data/x.py", "from m4oe_ds.config import Config", 5),
    "evaluation to training": ("m4oe_ds/evaluation/x.py", "async def f():\n    import m4oe_ds.training.loop", 6),
    "report to torch": ("m4oe_ds/report/x.py", "import torch", 7),
    "data_tools to layers": ("data_tools/x.py", "from m4oe_ds.layers import MToE", 8),
    "data_tools to config": ("data_tools/x.py", "import m4oe_ds.config", 8),
    "cli to torch": ("m4oe_ds/cli.py", "import torch", 9),
}
HARMLESS = {
    "torch in layers": (
        "m4oe_ds/layers/x.py",
        "import torch\nfrom torch.nn import functional\nfrom m4oe_ds.errors import X",
    ),
    "a longer name": ("m4oe_ds/data/x.py", "import m4oe_ds.configuration"),
    "losses to layers": ("m4oe_ds/losses/x.py", "from m4oe_ds.layers.routing import Routing"),
    "data_tools inside": (
        "data_tools/x.py",
        "from data_tools.pixels.dicom import read\nfrom . import phantom\nimport numpy",
    ),
    "data_tools to data": ("data_tools/x.py", "from m4oe_ds.data import schema\nfrom m4oe_ds.errors import DataError"),
    "from the top": ("data_tools/x.py", "from m4oe_ds import errors"),
    "lazy cli": ("m4oe_ds/cli.py", "def train():\n    import torch\n    import deepspeed"),
    "a comment": ("m4oe_ds/layers/x.py", "# import m4oe_ds.models\ntext = 'torch.distributed'"),
}


def plant(root: Path, where: str, source: str) -> None:
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found_by_its_rule_only(name: str, tmp_path: Path) -> None:
    where, source, index = PLANTED[name]
    plant(tmp_path, where, source)
    for number, rule in enumerate(RULES):
        found = violations(rule, tmp_path)
        assert bool(found) == (number == index), found
        if found:
            line = source.count("\n") + 1
            assert found[0].startswith(f"{where}:{line}: imports ")
            assert rule.text in found[0]


@pytest.mark.parametrize("name", HARMLESS)
def test_allowed_imports_pass(name: str, tmp_path: Path) -> None:
    plant(tmp_path, *HARMLESS[name])
    assert [line for rule in RULES for line in violations(rule, tmp_path)] == []
