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
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

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


FLOORS = (
    "m4oe_ds.errors", "m4oe_ds.compat", "m4oe_ds.yaml_tree", "m4oe_ds.option_lists", "m4oe_ds.arguments",
    "m4oe_ds.stored", "m4oe_ds.progress", "m4oe_ds.command_line", "m4oe_ds.shipped", "m4oe_ds.coordinates",
    "m4oe_ds.launcher", "m4oe_ds.data", "data_tools.outputs", "data_tools.deidentify", "data_tools.archives.values",
    "data_tools.archives.plan", "data_tools.archives.groups", "data_tools.identifiers", "data_tools.pixels",
    "data_tools.archives", "data_tools.phantom", "data_tools.sheet", "data_tools.inspect", "data_tools.convert",
    "data_tools.cards", "m4oe_ds.config_fields", "m4oe_ds.config", "data_tools.demo", "m4oe_ds.free_options",
    "m4oe_ds.deepspeed_json", "m4oe_ds.layers", "m4oe_ds.losses", "m4oe_ds.models", "m4oe_ds.config_names",
    "m4oe_ds.config_tasks", "m4oe_ds.config_checks", "m4oe_ds.config_loader", "m4oe_ds.parallel",
    "m4oe_ds.evaluation", "m4oe_ds.runs", "m4oe_ds.report", "m4oe_ds.diff", "m4oe_ds.planning", "m4oe_ds.training",
    "m4oe_ds.compare",
    "m4oe_ds.analysis.information", "m4oe_ds.analysis.pid", "m4oe_ds.analysis", "m4oe_ds.predict", "m4oe_ds.scaling",
    "m4oe_ds.figures", "m4oe_ds.entry", "m4oe_ds.start", "m4oe_ds.doctor", "m4oe_ds.cli", "m4oe_ds.__main__",
)  # fmt: skip
"""Every import of a room goes to a room further up this list, which is a floor further down the house."""

CONFIGURATION = ("m4oe_ds.config", "m4oe_ds.config_loader", "m4oe_ds.deepspeed_json")
CONVERTER = (  # what needs it reads new images (predict) or makes the demo's (compare)
    *CONFIGURATION, "m4oe_ds.layers", "m4oe_ds.losses", "m4oe_ds.models", "m4oe_ds.parallel", "m4oe_ds.evaluation",
    "m4oe_ds.runs", "m4oe_ds.report", "m4oe_ds.planning", "m4oe_ds.training", "m4oe_ds.analysis", "m4oe_ds.scaling",
    "m4oe_ds.figures",
)  # fmt: skip
APART = (  # rooms, and lower ones that they are not to lean on
    (("m4oe_ds.models",), ("m4oe_ds.losses",)),
    (("m4oe_ds.parallel",), ("m4oe_ds.models", "m4oe_ds.losses", "m4oe_ds.data", *CONFIGURATION)),
    (("m4oe_ds.layers",), ("m4oe_ds.data", *CONFIGURATION)),
    (("m4oe_ds.losses",), ("m4oe_ds.data", *CONFIGURATION)),
    (("data_tools.phantom",), ("data_tools.pixels",)),  # or the oracle would stand on the code it judges
    (CONVERTER, ("data_tools",)),
)
ALLOWED = (("m4oe_ds.losses", "m4oe_ds.data.schema"),)  # the types of tasks
OUTSIDE = {  # libraries that a room must do without; imports inside functions of cli.py are what keeps its --help quick
    "m4oe_ds.errors": ("torch", "deepspeed"),
    "m4oe_ds.config": ("torch", "deepspeed"),
    "m4oe_ds.data.schema": ("torch", "deepspeed"),
    "m4oe_ds.layers": ("torch.distributed", "deepspeed"),
    "m4oe_ds.losses": ("torch.distributed", "deepspeed"),
    "m4oe_ds.report": ("torch", "deepspeed"),
    "m4oe_ds.diff": ("torch", "deepspeed"),
    "m4oe_ds.cli": ("torch", "deepspeed", "timm"),
}


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


def floor_of(name: str) -> int | None:
    """Height of a module, that of the smallest room it lies in; None for what is not ours, or a package as such."""
    return max((number for number, room in enumerate(FLOORS) if within(name, room)), key=_length, default=None)


def _length(floor: int) -> int:
    return len(FLOORS[floor])


def apart(importer: str, name: str) -> bool:
    """True if a room is not to lean on a lower one."""
    if any(within(importer, room) and within(name, part) for room, part in ALLOWED):
        return False
    return any(
        within(importer, room) and within(name, other) for rooms, others in APART for room in rooms for other in others
    )


def complaint(entry: Import) -> str:
    """What is wrong with an import, empty if nothing."""
    # of `from a import b` the longer reading: where b is no module, it lies in the room of a
    own, floor = floor_of(entry.importer), floor_of(entry.names[-1])
    if own is not None and floor is not None and floor > own:
        return f"{FLOORS[own]} lies below {FLOORS[floor]}"
    if apart(entry.importer, entry.names[-1]):
        return f"{entry.importer} does without {entry.names[-1]}"
    for name in entry.names:
        lazy_cli = entry.lazy and entry.importer.split(".")[-1] == "cli"
        if not lazy_cli and any(
            within(entry.importer, room) and within(name, library) for room in OUTSIDE for library in OUTSIDE[room]
        ):
            return f"{entry.importer} does without {name}"
    return ""


def sources(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def violations(root: Path) -> list[str]:
    """``path:line: imports name: reason`` of every import that does not go down."""
    return [
        f"{path.relative_to(root)}:{entry.line}: imports {entry.names[-1]}: {reason}"
        for path in sources(root)
        for entry in imports_of(path, root)
        if (reason := complaint(entry))
    ]


def circles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others, imports inside functions included."""
    modules = {module_name(path, root): path for path in sources(root)}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = {next((n for n in reversed(e.names) if n in modules), "") for e in imports_of(path, root)}
        edges[module] = found - {"", module}
    graph = csr_matrix(
        (
            [1 for targets in edges.values() for _ in targets],
            (
                [number for number, targets in enumerate(edges.values()) for _ in targets],
                [list(edges).index(target) for targets in edges.values() for target in targets],
            ),
        ),
        shape=(len(edges), len(edges)),
    )
    _, group = connected_components(graph, connection="strong")
    members: dict[int, list[str]] = {}
    for module, number in zip(edges, group, strict=True):
        members.setdefault(int(number), []).append(module)
    return [names for names in members.values() if len(names) > 1]


def test_every_import_goes_down() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(["", *found])


def test_no_modules_import_each_other() -> None:
    assert circles(ROOT) == []


def test_every_room_has_a_floor() -> None:
    rooms = [path for package in PACKAGES for path in (ROOT / package).iterdir() if path.name != "__init__.py"]
    names = [
        module_name(path / "__init__.py" if path.is_dir() else path, ROOT)
        for path in rooms
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    assert len(names) > 20
    assert [name for name in names if floor_of(name) is None] == []


def test_the_page_for_contributors_has_the_same_floors() -> None:
    rows = [line.split("|")[2] for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
    named = [part.strip().strip("`") for row in rows[1:] for part in row.split(",")]
    assert named == [room.removeprefix("m4oe_ds.") for room in FLOORS if not room.endswith("__main__")]


def test_the_package_is_found() -> None:
    assert (ROOT / "m4oe_ds" / "layers" / "mtoe.py").exists()
    assert any(entry.names[0] == "torch" for entry in imports_of(ROOT / "m4oe_ds" / "layers" / "mtoe.py", ROOT))


def test_leaves_load_without_torch() -> None:
    """What a package's ``__init__`` pulls in counts as well; only running it shows that."""
    script = (
        "import sys; import m4oe_ds, m4oe_ds.errors, m4oe_ds.config, m4oe_ds.data.schema, m4oe_ds.runs.folder;"
        "print([name for name in ('torch', 'deepspeed', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


PLANTED = {
    "torch in config": ("m4oe_ds/config.py", "import torch.nn as nn"),
    "lazy torch in schema": ("m4oe_ds/data/schema.py", "def f():\n    from torch import Tensor"),
    "layers to data": ("m4oe_ds/layers/x.py", "from m4oe_ds import data"),
    "layers to config_loader": ("m4oe_ds/layers/x.py", "import m4oe_ds.config_loader"),
    "layers to torch.distributed": ("m4oe_ds/layers/x.py", "from torch import distributed as dist"),
    "layers use torch.distributed": ("m4oe_ds/layers/x.py", "import torch\nrank = torch.distributed.get_rank()"),
    "relative, two levels up": ("m4oe_ds/losses/x.py", "from ..models.m4oe import M4oE"),
    "relative from a package": ("m4oe_ds/losses/__init__.py", "from .. import training"),
    "losses under TYPE_CHECKING": (
        "m4oe_ds/losses/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import m4oe_ds.parallel.groups",
    ),
    "models to losses": ("m4oe_ds/models/baselines/x.py", "from m4oe_ds.losses import focal"),
    "models by name": ("m4oe_ds/models/x.py", "import importlib\nimportlib.import_module('m4oe_ds.parallel')"),
    "parallel to data": ("m4oe_ds/parallel/x.py", "from m4oe_ds.data.batch import Batch"),
    "data to config": ("m4oe_ds/data/x.py", "from m4oe_ds.config import Config"),
    "evaluation to training": ("m4oe_ds/evaluation/x.py", "async def f():\n    import m4oe_ds.training.loop"),
    "training to analysis": ("m4oe_ds/training/x.py", "from m4oe_ds.analysis.validation_figures import A"),
    "runs to training": ("m4oe_ds/runs/x.py", "from m4oe_ds.training import records"),
    "report to analysis": ("m4oe_ds/report/x.py", "def f():\n    from m4oe_ds.analysis import figures"),
    "report to torch": ("m4oe_ds/report/x.py", "import torch"),
    "data_tools to layers": ("data_tools/convert/x.py", "from m4oe_ds.layers import MToE"),
    "data_tools to config": ("data_tools/outputs.py", "import m4oe_ds.config"),
    "pixels to convert": ("data_tools/pixels/geometry.py", "from data_tools.convert.options import ConvertOptions"),
    "archives to phantom": ("data_tools/archives/tables.py", "def f():\n    from data_tools.phantom import breast"),
    "phantom to convert": ("data_tools/phantom/breast.py", "from ..convert import options"),
    "phantom to pixels": ("data_tools/phantom/x.py", "from data_tools.pixels import dicom"),
    "pid to analysis": ("m4oe_ds/analysis/pid/x.py", "from m4oe_ds.analysis.session import Session"),
    "pid to its neighbour": ("m4oe_ds/analysis/pid/x.py", "from .. import figures"),
    "losses to config": ("m4oe_ds/losses/x.py", "from m4oe_ds.config import Config"),
    "losses to the stream": ("m4oe_ds/losses/x.py", "from m4oe_ds.data.stream import ShardStream"),
    "losses to data as such": ("m4oe_ds/losses/x.py", "from m4oe_ds.data import stream, schema"),
    "models to data_tools": ("m4oe_ds/models/heads.py", "from data_tools import identifiers"),
    "cli to torch": ("m4oe_ds/cli.py", "import torch"),
}
HARMLESS = {
    "torch in layers": (
        "m4oe_ds/layers/x.py",
        "import torch\nfrom torch.nn import functional\nfrom m4oe_ds.errors import X",
    ),
    "a longer name": ("m4oe_ds/data/x.py", "import m4oe_ds.configuration"),
    "losses to layers": ("m4oe_ds/losses/x.py", "from m4oe_ds.layers.routing import Routing"),
    "data_tools inside": (
        "data_tools/convert/x.py",
        "from data_tools.pixels.dicom import read\nfrom .. import archives\nimport numpy",
    ),
    "data_tools to data": (
        "data_tools/pixels/x.py",
        "from m4oe_ds.data import schema\nfrom m4oe_ds.errors import DataError",
    ),
    "from the top": ("data_tools/demo.py", "from m4oe_ds import errors\nfrom data_tools import convert"),
    "losses to schema": (
        "m4oe_ds/losses/x.py",
        "from m4oe_ds.data.schema import TaskSpec\nfrom m4oe_ds.data import schema",
    ),
    "pid to information": ("m4oe_ds/analysis/pid/x.py", "from m4oe_ds.analysis import information"),
    "analysis to pid": ("m4oe_ds/analysis/x.py", "from m4oe_ds.analysis.pid import broja\nfrom . import pid"),
    "lazy cli": ("m4oe_ds/cli.py", "def train():\n    import torch\n    import deepspeed"),
    "a comment": ("m4oe_ds/layers/x.py", "# import m4oe_ds.models\ntext = 'torch.distributed'"),
}


def plant(root: Path, where: str, source: str) -> None:
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str, tmp_path: Path) -> None:
    where, source = PLANTED[name]
    plant(tmp_path, where, source)
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(f"{where}:{source.count(chr(10)) + 1}: imports ")


@pytest.mark.parametrize("name", HARMLESS)
def test_allowed_imports_pass(name: str, tmp_path: Path) -> None:
    plant(tmp_path, *HARMLESS[name])
    assert violations(tmp_path) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "m4oe_ds/data/one.py", "from m4oe_ds.data import two")
    plant(tmp_path, "m4oe_ds/data/two.py", "def f():\n    from m4oe_ds.data.three import x")
    plant(tmp_path, "m4oe_ds/data/three.py", "import m4oe_ds.data.one")
    plant(tmp_path, "m4oe_ds/data/four.py", "import m4oe_ds.data.one")
    assert circles(tmp_path) == [["m4oe_ds.data.one", "m4oe_ds.data.three", "m4oe_ds.data.two"]]
