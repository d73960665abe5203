"""Consolidated weights into a model that differs: every name and shape that does not fit is said, the rest loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from m4oe_ds.errors import CheckpointError
from m4oe_ds.layers import MToE
from m4oe_ds.layers.experts import ExpertWeights
from m4oe_ds.runs import state_files, weights


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weights of a layer with four experts and two tasks, in a file."""
    content = {name: torch.randn_like(value) for name, value in MToE(6, 4, 2, hidden=5).state_dict().items()}
    save_file(content, str(tmp_path / "model.safetensors"))
    return tmp_path / "model.safetensors", content


def test_everything_fits(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, content = stored
    layer = MToE(6, 4, 2, hidden=5)
    assert weights.load(layer, path) == []
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, content[name], rtol=0, atol=0)


def test_every_difference_is_named_and_the_rest_is_loaded(
    stored: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    _, content = stored
    changed = dict(content)
    del changed["task_embed"], changed["experts.experts.w2"]
    changed["router.phi"] = torch.randn(6, 4, 3)
    changed |= {"old.bias": torch.zeros(1), "older.bias": torch.zeros(1)}
    path = tmp_path / "other.safetensors"
    save_file(changed, str(path))
    layer = MToE(6, 4, 2, hidden=5)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    expected = [
        "missing experts.experts.w2",
        "missing task_embed",
        "unexpected old.bias",
        "unexpected older.bias",
        "router.phi has shape [6, 4, 3], the model wants [6, 4, 2]",
    ]
    with pytest.raises(CheckpointError, match="5 names do not match") as caught:
        weights.load(layer, path)
    assert all(line in str(caught.value) for line in expected)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)  # an error leaves the model as it was
    assert weights.load(layer, path, strict=False) == expected
    state = layer.state_dict()
    for name in ("experts.experts.w1", "experts.experts.w3", "router.scale"):
        torch.testing.assert_close(state[name], content[name], rtol=0, atol=0)
    for name in ("experts.experts.w2", "task_embed", "router.phi"):
        torch.testing.assert_close(state[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("experts", [3, 8])
def test_experts_of_a_model_with_another_number_of_them_are_not_taken(
    experts: int, stored: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    """The first three of four would fit into a model with three."""
    found = weights.load(MToE(6, experts, 2, hidden=5), stored[0], strict=False)
    assert f"experts.experts.w1 has shape [4, 6, 5], the model wants [{experts}, 6, 5]" in found
    assert len(found) == 4  # with w2, w3 and phi


class Share(nn.Module):
    """An executor that holds experts ``first`` to ``first + count - 1`` of ``num_experts``, as a rank does."""

    def __init__(self, num_experts: int, first: int, count: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.experts = ExpertWeights(range(first, first + count), dim, hidden)


@pytest.mark.parametrize("first", [0, 2])
def test_a_rank_reads_the_experts_it_holds(stored: tuple[Path, dict[str, torch.Tensor]], first: int) -> None:
    path, content = stored
    layer = MToE(6, 4, 2, hidden=5, experts_factory=lambda n, dim, hidden: Share(n, first, 2, dim, hidden))
    assert weights.load(layer, path) == []
    for name, value in layer.state_dict().items():
        whole = content[name]
        expected = whole[first : first + 2] if ".experts." in name else whole
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_a_rank_refuses_the_experts_of_a_model_with_another_number_of_them(
    stored: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    """Two experts of eight would fit into the first two of four, and be those of another model."""
    layer = MToE(6, 8, 2, hidden=5, experts_factory=lambda n, dim, hidden: Share(n, 0, 2, dim, hidden))
    with pytest.raises(CheckpointError, match=r"experts\.experts\.w1 has shape \[4, .*\], the model wants \[8, "):
        weights.load(layer, stored[0])


def test_an_export_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("M4OE_PROGRESS", "1")
    values = {"a": torch.arange(6.0), "b": torch.ones(2)}
    state_files.write(
        {f"master|{name}|0": value for name, value in values.items()}, tmp_path / "state-00000.safetensors"
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"parameters": {"a": [2, 3], "b": [2]}}))
    (path,) = weights.consolidate(tmp_path, tmp_path / "out" / "model.safetensors")
    assert torch.equal(load_file(path)["a"], values["a"].view(2, 3))
    printed = capsys.readouterr().err
    assert "weights" in printed
    assert "0/2" in printed
