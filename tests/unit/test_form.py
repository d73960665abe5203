"""The form every file keeps, as far as the linter cannot check it: docstrings that tools can read, tables, sizes.

The line length and the formatting themselves are ruff's (``make lint``).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("m4oe_ds", "data_tools", "tools", "benchmarks")
SOURCES = sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 450, 60
DERIVATION = "m4oe_ds/layers/mixing.py"  # one backward pass, derived line by line: better in one piece
ENTRY = re.compile(r"(\*{0,2}\w+)(?: \([^)]*\))?: \S")
SEVERAL = re.compile(r"\*{0,2}\w+(?:, \*{0,2}\w+)+: ")
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _documented(tree: ast.Module) -> Iterator[tuple[Documented, str]]:
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            text = ast.get_docstring(node)
            if text:
                yield node, text


def _section(docstring: str, title: str) -> list[str]:
    """Lines of a section of a docstring without their common indentation; none where there is no such section."""
    lines = docstring.splitlines()
    if f"{title}:" not in lines:
        return []
    start = lines.index(f"{title}:") + 1
    body = []
    for line in lines[start:]:
        if line and not line.startswith(" "):
            break
        body.append(line[4:])
    return [line for line in body if line.strip()]


def _names(node: Documented) -> set[str]:
    """Parameters of a function; fields and ``self`` attributes of a class and parameters of its ``__init__``."""
    functions = [node] if not isinstance(node, ast.ClassDef) else [m for m in node.body if isinstance(m, Documented)]
    names: set[str] = set()
    for function in functions:
        if isinstance(function, ast.ClassDef):
            continue
        if isinstance(node, ast.ClassDef):
            names.add(function.name)
            if function.name != "__init__":
                continue
        every = function.args
        names.update(a.arg for a in (*every.posonlyargs, *every.args, *every.kwonlyargs))
        names.update("*" + a.arg for a in (every.vararg,) if a is not None)
        names.update("**" + a.arg for a in (every.kwarg,) if a is not None)
    return names


def faults(source: str) -> list[str]:
    """What is wrong with the ``Args``, ``Attributes`` and ``Raises`` of a module's docstrings."""
    found = []
    for node, text in _documented(ast.parse(source)):
        for title in ("Args", "Attributes", "Raises"):
            names = _names(node)
            for line in _section(text, title):
                if line.startswith(" "):  # an entry goes on
                    continue
                if SEVERAL.match(line):
                    found.append(f"{node.name}: several names in one entry of {title}: {line}")
                elif not ENTRY.match(line):
                    found.append(f"{node.name}: not 'name: text' in {title}: {line}")
                elif title == "Args" and ENTRY.match(line).group(1) not in names:  # type: ignore[union-attr]
                    found.append(f"{node.name}: no such parameter: {line}")
            joined = " ".join(line.strip() for line in _section(text, title))
            packed = [n for n in names if title != "Raises" and re.search(rf"[.;] {re.escape(n)}: ", joined)]
            starts = {entry.group(1) for line in _section(text, title) if (entry := ENTRY.match(line))}
            found += [f"{node.name}: {n} stands inside another entry of {title}" for n in packed if n not in starts]
    return found


def test_docstrings_have_one_name_a_line() -> None:
    assert [f"{path.relative_to(ROOT)}: {fault}" for path in SOURCES for fault in faults(path.read_text())] == []


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("a, b: two of them.", "several names"),
        ("a: first. b: second.", "inside another"),
        ("a is a number", "not 'name: text'"),
        ("c: not there.", "no such parameter"),
        ("a: first.\n        and b: on the wrong indentation.", "not 'name: text'"),
    ],
)
def test_packed_sections_are_found(section: str, fault: str) -> None:
    source = f'def f(a, b):\n    """Sum.\n\n    Args:\n        {section}\n    """\n'
    assert any(fault in found for found in faults(source))


def test_good_sections_pass() -> None:
    sections = "    Args:\n        a: one,\n            two: three.\n        *b: more.\n"
    source = f'def f(a, *b):\n    """Sum.\n\n{sections}    """\n'
    assert faults(source) == []


def _is_table(node: ast.stmt, source: str) -> bool:
    """True for an assignment of a literal over several lines, and for the cases of a parametrised test."""
    value = getattr(node, "value", None)
    literal = isinstance(value, ast.Tuple | ast.List | ast.Dict | ast.Set | ast.DictComp)
    decorators = getattr(node, "decorator_list", [])
    return literal or any("parametrize" in (ast.get_source_segment(source, d) or "") for d in decorators)


def misplaced(source: str) -> list[int]:
    """Lines on which the formatter is switched off without a table."""
    mark = "# fmt: " + "skip"
    lines = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith(mark)]
    tables = (
        [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt) and _is_table(n, source)] if lines else []
    )
    ends = {d.end_lineno for n in tables for d in (n, *getattr(n, "decorator_list", []))}
    return [line for line in lines if line not in ends]


def test_formatting_is_switched_off_for_tables_only() -> None:
    for path in (*SOURCES, *TESTS):
        source = path.read_text()
        assert misplaced(source) == [], path
        assert "# fmt: " + "off" not in source, path
    assert misplaced("f(\n    a, b\n)  # fmt: " + "skip\n") == [3]
    assert misplaced("a = (\n    1, 2\n)  # fmt: " + "skip\n") == []


def test_files_and_functions_stay_small() -> None:
    large = []
    for path in (*SOURCES, *TESTS):
        source, name = path.read_text(), str(path.relative_to(ROOT))
        lines = len(source.splitlines())
        large += [f"{name}: {lines} lines"] if lines > LONGEST_FILE else []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name != DERIVATION and path not in TESTS:
                lines = (node.end_lineno or 0) - node.lineno + 1
                large += [f"{name}: {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION else []
    assert large == []


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports test files by their base name: two of one name end its collection."""
    counts = Counter(path.name for path in TESTS if path.name.startswith("test_"))
    assert {name for name, count in counts.items() if count > 1} == set()
