"""torchvision is imported as anybody would; the work-around is for one known error alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RAISES = {
    "known error once": (
        "import torch\n"
        "if not hasattr(torch.ops.mine_seen, 'name') and not getattr(torch, '_seen', False):\n"
        "    torch._seen = True\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n",
        "",
    ),
    "another error": ("raise RuntimeError('out of luck')\n", "RuntimeError: out of luck"),
    "another operator": (
        "raise RuntimeError('operator torchvision::roi_align does not exist')\n",
        "RuntimeError: operator torchvision::roi_align does not exist",
    ),
    "the known error for ever": (
        "raise RuntimeError('operator torchvision::nms does not exist')\n",
        "RuntimeError: operator torchvision::nms does not exist",
    ),
    "not installed": ("raise ImportError('no torchvision here')\n", "ImportError: no torchvision here"),
}


def run(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    insert = "".join(f"import sys; sys.path.insert(0, {str(folder)!r})\n" for folder in folders)
    return subprocess.run([sys.executable, "-c", insert + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", RAISES)
def test_errors_of_an_import(name: str, tmp_path: Path) -> None:
    """A package called torchvision that ends in an error: what a broken installation does, in a process of its own."""
    source, error = RAISES[name]
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    done = run("from m4oe_ds.compat import import_torchvision\nimport_torchvision()\nprint('imported')", tmp_path)
    assert (error or "imported") in (done.stderr if error else done.stdout), done.stderr[-500:]
    assert (done.returncode == 0) == (not error)


def test_a_plain_import_declares_nothing(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("fine = True\n")
    code = "from m4oe_ds import compat\ncompat.import_torchvision()\nprint(len(compat._DECLARED))"
    assert run(code, tmp_path).stdout.strip() == "0"


def test_this_installation_is_imported() -> None:
    done = run("from m4oe_ds.compat import import_torchvision\nimport_torchvision()\nimport timm\nprint('timm')")
    assert done.stdout.strip() == "timm", done.stderr[-500:]
