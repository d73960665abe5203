"""What ``m4oe config`` refuses: all that training would trip over and that is known before there is a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.config_checks import patch_size
from m4oe_ds.errors import ConfigError
from m4oe_ds.free_options import problems, read
from m4oe_ds.models.options import EvifOptions, MiraiOptions

REFUSED = {
    "model.name=mirrai": "unknown model.name 'mirrai'; did you mean mirai?",
    "model.embedder.backbone=vit_tinny": "timm has no network 'vit_tinny'; near: vit_tiny_patch16_224",
    "data.dataset=emebd": "unknown data set 'emebd'; did you mean embed?",
    "data.dataset=./absent.yaml": "no such card",
    "data.tasks=[densty]": "'densty' is not one of the tasks of embed; did you mean density?",
    "data.tasks=[density, density]": "data.tasks lists density twice",
    "data.modalities=[ffdm_c]": "did you mean ffdm_cc?",
    "data.sampling={kind: balanced, tasks: [densty]}": "did you mean density?",
    "data.sampling.tasks=[density]": "data.sampling.tasks does nothing here",
    "data.sampling.kind=balansed": "must be one of uniform, balanced",
    "evaluation.splits=[tets]": "'tets' is not one of the splits; did you mean test?",
    "loss.gradient_policy=calibratd": "must be one of sum, calibrated",
    "loss.gradient_options={rule: norm}": "(of loss.gradient_policy sum) is unknown: there are none",
    "loss={gradient_policy: calibrated, gradient_options: {rule: norn}}": "must be one of norm, imtl_g, got 'norn'",
    "loss={gradient_policy: calibrated, gradient_options: {momentum: 1}}": "must be at least 0 and below 1, got 1",
    "loss={gradient_policy: calibrated, gradient_options: {mometum: 1}}": "is unknown; did you mean momentum?",
    "model={name: mirai, options: {hiden: 3}}": "model.options.hiden (of mirai) is unknown; did you mean hidden?",
    "model={name: mirai, options: {hidden: 2.5}}": "(of mirai) must be a whole number, got 2.5",
    "model={name: mirai, options: {hidden: true}}": "(of mirai) must be a whole number, got True",
    "model={name: mirai, options: {dropout: 1}}": "(of mirai) must be at least 0 and below 1, got 1",
    "model={name: mirai, options: {heads: 7}}": "model.options.heads=7 does not divide model.options.hidden=512",
    "model.options={depth: 2}": "model.options.depth (of m4oe) is unknown: there are none",
    "model.regime=native": "model.regime does nothing here",
    "model.attach_mtoe=append": "model.attach_mtoe does nothing here",
    "model={name: mirai, use_mtoe: false}": "model.use_mtoe does nothing here",
    "model.init_map={density: density}": "model.init_map does nothing without model.init_from",
    "model={name: mirai, missing_modality: bank}": "mirai has no bank",
    "model.msoe.num_heads=5": "model.msoe.num_heads=5 does not divide model.dim=768; choose one of 1, 2, 3",
    "data.image_size=[65, 64]": "patches of 16 pixels do not divide data.image_size=[65, 64]; write e.g. [64, 64]",
    "data.image_size=[64]": "data.image_size must be [height, width], got [64]",
    "data.image_size=[99999, 64]": "must be at least 8 and at most 16384",
    "data.volume_size=[32, 64]": "data.volume_size must be [depth, height, width], got [32, 64]",
    "run.name=a/b": "must be the name of a folder",
    "model.embedder.options={patch_size: 0}": "patch_size must be a whole number from 1, got 0",
    "model.embedder.options={patch_size: [8, 8]}": "patch_size must be a whole number from 1, got [8, 8]",
    "model.embedder.options={depth: 0}": "model.embedder.options.depth must be a whole number from 1, got 0",
    "model.embedder.options={num_heads: [2, 0]}": "num_heads must be a whole number from 1, got [2, 0]",
    "model.embedder.options={qkv_bias: maybe}": "qkv_bias must be true or false, got 'maybe'",
    "model.embedder.options={drop_rate: 2}": "drop_rate must be a number from 0 and below 1, got 2",
    "model.embedder.options={mlp_ratio: 0}": "mlp_ratio must be a number above 0, got 0",
    "model.embedder.options={depth:2}": "has a key 'depth:2' without a value; write a blank after the colon",
    "run.expects={train_batch_size:32}": "'train_batch_size:32' without a value; write a blank after the colon",
    "model.mlp_ratio=0.0001": "model.mlp_ratio=0.0001 of model.dim=768 leaves no width",
    "model.freeze=[heads, heads]": "model.freeze lists heads twice",
    "optim.no_decay=[norms, norms]": "optim.no_decay lists norms twice",
    "run.trackers=[tensorboard, tensorboard]": "run.trackers lists tensorboard twice",
    "schedule={min_factor: 2}": "schedule.min_factor=2 is above schedule.peak_factor=1",
    "schedule.gamma=2": "schedule.gamma=2.0 must be at least 0 and at most 1",
    "data.augment.noise=50": "must be at least 0 and at most 1",
    "evaluation.num_examples=100000": "must be at least 0 and at most 1000",
    "loss.default.kind=hazard": "loss.default.kind=hazard does not fit the ordinal task birads",
    "loss.tasks={density: {kind: mse}}": "loss.tasks.density.kind=mse does not fit the ordinal task density; use",
    "loss.default={kind: focal, label_smoothing: 0.1}": "loss.default.label_smoothing does nothing with the loss focal",
    "loss.default.label_smoothing=1": "must be at least 0 and below 1",
    "loss.default.gamma=3": "loss.default.gamma does nothing with the loss auto; set loss.default.kind=focal",
    "data.sampling.kind=balanced": "data.sampling.tasks is empty: `balanced` needs tasks; choose among birads",
    "data={tasks: [density], sampling: {kind: balanced, tasks: [risk1]}}": "risk1 is no task with classes of this run",
    "model.name=asymmirai": "asymmirai compares both sides: set data.contralateral=true",
    "run.name=": "must be the name of a folder",
    "run.seed=9223372036854775808": "must be at least 0 and at most 9223372036854775807",
    "run.num_epochs=0": "must be at least 1",
    "run.num_epochs=10000000000": "run.num_epochs=10000000000 must be at most 1000000000",
    "schedule.peak_factor=1e300": "must be at most 1000000000",
    "parallel.timeout_minutes=1e6": "must be at most 10080 and above 0",
    "evaluation.resamples=100000000000": "must be at least 0 and at most 1000000",
    "schedule.peak_factor=-1": "must be above 0",
    "loss.alpha=.inf": "must be a finite number, got inf",
    "loss.alpha=1e999": "must be a finite number, got",
    "model.dim=null": "model.dim must be a whole number, got null",
    "model.dim=true": "model.dim must be a whole number, got true",
    "model=null": "model must be a mapping, got null; its options: name, dim",
    "data.workers=-1": "must be at least 0 and at most 4096",
    "run.checkpoint.metric=acuracy": "must be one of loss, auroc, balanced_accuracy",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_loader.load(None, [override])
    assert all(line.startswith(f"--set {override}: ") for line in str(caught.value).splitlines())
    assert REFUSED[override] in str(caught.value)


def test_nothing_of_this_imports_torch() -> None:
    code = f"""
import sys
from m4oe_ds import config_loader
from m4oe_ds.errors import ConfigError
for override in {list(REFUSED)!r}:
    try:
        config_loader.load(None, [override])
    except ConfigError:
        pass
config_loader.load("paper/embed")
print([name for name in ("torch", "timm", "deepspeed") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("backbone", "options", "size"),
    [
        ("vit_base_patch16_224", "{}", 16),
        ("vit_base_patch16_224", "{patch_size: 8}", 8),
        ("vit_small_patch8_224.dino", "{}", 8),
        ("resnet18", "{}", 0),
    ],
)
def test_sides_of_patches(backbone: str, options: str, size: int) -> None:
    more = [f"model.embedder.backbone={backbone}", f"model.embedder.options={options}"]
    assert patch_size(config_loader.load(None, more)) == size


# ------------------------------------------------------------------------------------- mappings of free options


def test_a_mapping_given_with_set_replaces_and_a_dotted_key_changes_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\nmodel: {embedder: {options: {depth: 1}}}\n")
    inherited = {"patch_size": 8, "embed_dim": 64, "num_heads": 4}

    def options(*overrides: str) -> dict[str, object]:
        return config_loader.load(path, overrides).model.embedder.options

    assert options() == {**inherited, "depth": 1}  # files merge, as everywhere
    assert options("model.embedder.options={patch_size: 4}") == {"patch_size": 4}
    assert options("model.embedder={options: {patch_size: 4}}") == {"patch_size": 4}
    assert options("model.embedder.options.depth=3") == {**inherited, "depth": 3}
    assert options("model.embedder.options={patch_size: 4}", "model.embedder.options.depth=3") == {
        "patch_size": 4,
        "depth": 3,
    }
    assert options("model.embedder.options={}", "data.image_size=[64, 64]") == {}
    assert config_loader.load(path, ["run.expects={gradient_clipping: 0.0}"]).run.expects == {"gradient_clipping": 0.0}


def test_mappings_with_a_layout_merge_whatever_gives_them() -> None:
    config = config_loader.load("demo", ["model.msoe={depth: 2}", "loss.tasks={density: {weight: 2}}"])
    assert (config.model.msoe.num_experts, config.model.msoe.depth) == (4, 2)


def test_problems_of_a_mapping() -> None:
    assert list(problems(MiraiOptions, {"hidden": 256, "dropout": 0, "pool": "mean"})) == []
    made = read(MiraiOptions, {"hidden": 256, "dropout": 0})
    assert (made.hidden, made.dropout, type(made.dropout)) == (256, 0.0, float)
    wrong = dict(problems(EvifOptions, {"heads": "8", "private": float("nan"), "temperature": 0, "x": 1}))
    assert wrong == {
        "heads": "must be a whole number, got '8'",
        "private": "must be a number, got nan",
        "temperature": "must be above 0, got 0",
        "x": "is unknown (known: estimator_lr, fused, heads, private, temperature)",
    }
