"""What a wheel declares, against what the code imports; files beside it that name versions, files and addresses."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from email.message import Message
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from m4oe_ds import __version__
from m4oe_ds.doctor.machine import TESTED

ROOT = Path(__file__).resolve().parents[2]
BOUNDED = ("torch", "torchvision", "timm", "numpy")  # of those a new version has broken imports, or changed results
WITH_OTHERS = {
    "pydantic": "deepspeed",
    "botocore": "boto3",
}  # imported, and required by a package that is required anyway
EXTRAS = {"wandb", "mlflow"}  # imported if the user names them, never installed by the tests


@lru_cache
def arguments() -> dict[str, Any]:
    """What ``setup.py`` hands to setuptools."""
    given: dict[str, Any] = {}
    with mock.patch.object(setuptools, "setup", given.update):
        exec(compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec"), {"__file__": ROOT / "setup.py"})
    return given


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> dict[str, Requirement]:
    return {normal(item.name): item for item in map(Requirement, arguments()["install_requires"])}


def optional() -> set[str]:
    extras = arguments()["extras_require"]
    return {normal(Requirement(text).name) for name, texts in extras.items() if name != "test" for text in texts}


@lru_cache
def distributions() -> dict[str, list[str]]:
    return {name: [normal(one) for one in found] for name, found in metadata.packages_distributions().items()}


def third_party() -> Iterator[tuple[str, str, bool]]:
    """Place, top-level module and whether it is imported within a function, of every foreign import."""
    for package in ("m4oe_ds", "data_tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            lazy = {
                id(node)
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef)
                for node in ast.walk(function)
            }
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for name in {name.partition(".")[0] for name in names}:
                    if name not in sys.stdlib_module_names and name not in ("m4oe_ds", "data_tools"):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", name, id(node) in lazy


def test_what_is_imported_is_required() -> None:
    found = list(third_party())
    assert len(found) > 100
    undeclared = []
    for place, name, lazy in found:
        names = set(distributions().get(name, [normal(name)])) | {normal(WITH_OTHERS.get(name, name))}
        if not names & set(required()) and not (lazy and names & (optional() | EXTRAS)):
            undeclared.append(f"{place}: {name}")
    assert undeclared == []


def pins() -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {normal(name): Version(version) for name, version in (line.split("==") for line in lines if line)}


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    for name, requirement in required().items():
        assert name in pins(), f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins()[name]), f"{name} {pins()[name]} is outside {requirement}"


def test_the_doctor_knows_the_versions_of_the_tests() -> None:
    assert {normal(name): Version(version) for name, version in TESTED.items()} == {
        normal(name): pins()[normal(name)] for name in TESTED
    }


@pytest.mark.parametrize("name", BOUNDED)
def test_what_has_broken_before_has_an_upper_bound(name: str) -> None:
    assert any(bound.operator == "<" for bound in required()[name].specifier)


def test_every_file_of_the_packages_is_carried() -> None:
    """What is no Python module comes along only where ``package_data`` says so."""
    given = arguments()["package_data"]
    lost = []
    for package in ("m4oe_ds", "data_tools"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts:
                folders = [".".join(part.relative_to(ROOT).parts) for part in path.parents if part.is_relative_to(ROOT)]
                patterns = [
                    (ROOT / name.replace(".", "/"), pattern) for name in folders for pattern in given.get(name, ())
                ]
                if not any(path in set(folder.glob(pattern)) for folder, pattern in patterns):
                    lost.append(str(path.relative_to(ROOT)))
    assert lost == []


def test_metadata_says_what_and_for_whom() -> None:
    given = arguments()
    python = [text for text in given["classifiers"] if text.startswith("Programming Language :: Python :: 3.")]
    assert python == [f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)]
    assert given["project_urls"]
    assert given["version"] == __version__
    installed: Message = metadata.metadata("m4oe_ds")
    assert installed["Name"] == "m4oe_ds"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == arguments()["license"]
    assert citation["preferred-citation"]["url"] == arguments()["project_urls"]["Paper"]
    for key in ("message", "title", "authors"):
        assert citation[key]


# ------------------------------------------------------------------------------------------------------- containers

NEEDED = {
    "constraints.txt",
    "setup.py",
    "README.md",
    "LICENSE",
    "configs",
    "ds_configs",
    "slurm",
    "data_tools",
    "m4oe_ds",
}


def instructions() -> list[list[str]]:
    text = (ROOT / "containers" / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_dockerfile_copies_what_an_installation_needs() -> None:
    words = instructions()
    assert words[0][0] == "FROM"
    assert {line[0] for line in words} <= {"FROM", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
    copied = {name for line in words if line[0] == "COPY" for name in line[1:-1]}
    assert copied >= NEEDED
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not copied & set(ignored)
    assert {"data", "runs"} <= set(ignored)  # no images of people in an image


def test_the_apptainer_definition_copies_what_an_installation_needs() -> None:
    text = (ROOT / "containers" / "m4oe.def").read_text()
    head, *parts = re.split(r"^%", text, flags=re.M)
    header = dict(line.split(": ", 1) for line in head.splitlines() if line and not line.startswith("#"))
    assert header == {"Bootstrap": "docker", "From": instructions()[0][1]}
    sections = {part.split("\n", 1)[0].strip(): part.split("\n", 1)[1] for part in parts}
    assert set(sections) == {"files", "post", "environment", "runscript", "test"}
    copied = dict(line.split() for line in sections["files"].strip().splitlines())
    assert set(copied) >= NEEDED
    assert all((ROOT / name).exists() for name in copied)
    assert all(target == f"/opt/m4oe/{name}" for name, target in copied.items())


@pytest.mark.parametrize("name", ["Dockerfile", "m4oe.def"])
def test_containers_install_the_pinned_versions(name: str) -> None:
    text = (ROOT / "containers" / name).read_text()
    assert 'pip install --no-cache-dir -c /opt/m4oe/constraints.txt "/opt/m4oe[remote]"' in text
