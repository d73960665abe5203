"""What only a CUDA device can show: equal results to the CPU, and the low-precision recipes training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m4oe_ds.layers import MToE, initialise_experts
from m4oe_ds.losses import conditional_mutual_information
from tests.integration import commands, shards

pytestmark = pytest.mark.gpu


def test_mtoe_and_information_equal_the_cpu() -> None:
    layer = MToE(32, 8, 3)
    initialise_experts(layer, 0)
    tokens = torch.randn(4, 20, 32)
    mask = torch.ones(4, 20, dtype=torch.bool)
    mask[1, 10:] = False
    modality = torch.arange(20) // 10
    expected, routing = layer(tokens, mask)
    information = conditional_mutual_information(routing.logits, modality, token_mask=mask)
    found, routing = layer.cuda()(tokens.cuda(), mask.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)  # TF32 off; other summation order
    on_device = conditional_mutual_information(routing.logits, modality.cuda(), token_mask=mask.cuda())
    torch.testing.assert_close(on_device.cpu(), information, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["zero2", "zero3", "bf16", "fp16", "zero2_offload"])
def test_recipes_train_on_the_device(recipe: str, tmp_path: Path) -> None:
    data = shards.write(tmp_path / "shards")
    settings = [f"--set={item}" for item in (*shards.SMALL, "run.num_epochs=1")]
    result = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--ds_config",
            f"ds_configs/{recipe}.json",
            "--output",
            str(tmp_path / "run"),
            f"--set=data.root={data}",
            *settings,
        ],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "report.html").is_file()
