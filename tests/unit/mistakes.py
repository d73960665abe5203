"""Mistakes as users make them: command lines, and the words that the one line about each must have.

``{w}`` stands for a folder with ``shards`` of random samples, a finished run ``runs/one`` (configuration, weights,
two checkpoints, no predictions), an archive's folder ``rsna``, and a few files that are something else. All of these
mistakes are to be found before torch is imported.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from m4oe_ds import shipped
from tests.integration import shards

ZERO2 = json.loads(shipped.find(shipped.DS_CONFIG, "zero2").read_text())
TRAIN = "train --ds_config zero2 --config demo --output {w}/new --set data.root={w}/shards"
WRONG_JSON = {
    "batch": {**ZERO2, "train_batch_size": 48},
    "product": {**ZERO2, "train_micro_batch_size_per_gpu": 5},
    "scheduler": {**ZERO2, "scheduler": {"type": "WarmupLR"}},
    "stage": {**ZERO2, "zero_optimization": {**ZERO2["zero_optimization"], "stage": 0}},
    "optimzer": {("optimzer" if key == "optimizer" else key): value for key, value in ZERO2.items()},
    "listed": {**ZERO2, "zero_optimization": []},
    "negative": {**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": -1e-4}}},
    "nolr": {**ZERO2, "optimizer": {"type": "AdamW", "params": {}}},
}

TABLE: dict[str, tuple[str, tuple[str, ...]]] = {
    # options and configurations
    "01": ("config demo --set model.mtoe.num_expert=4", ("model.mtoe.num_expert", "did you mean num_experts?")),
    "02": ("config demo --set modle.dim=4", ("unknown key modle", "did you mean model?")),
    "03": ("config demo --set model.dim=big", ("model.dim must be a whole number, got 'big'",)),
    "04": ("config demo --set data.augment.enabled=maybe", ("must be true or false, got 'maybe'",)),
    "05": ("config demo --set model.dim", ("must have the form section.key=value",)),
    "06": ("config {w}/nope.yaml", ("no such configuration: {w}/nope.yaml", "give the path of a .yaml file")),
    "07": ("config {w}/shards", ("is a folder, not a configuration", "give a .yaml file")),
    "08": ("config demo --set data.dataset=emebd", ("'emebd'", "did you mean embed?")),
    "09": ("config demo --set model.name=mirrai", ("unknown model.name 'mirrai'", "did you mean mirai?")),
    "10": ("config demo --set model.embedder.backbone=vit_tinny", ("'vit_tinny'", "near: vit_tiny_patch16_224")),
    "11": ("config demo --set model.mtoe.num_experts=-2", ("model.mtoe.num_experts=-2 must be at least 1",)),
    "12": ("config demo --set run.num_epochs=0", ("run.num_epochs=0 must be at least 1",)),
    "13": ("config demo --set schedule.peak_factor=-1", ("schedule.peak_factor=-1.0 must be above 0",)),
    "14": ("config demo --set loss.alpha=-1", ("loss.alpha=-1.0 must be at least 0",)),
    "15": ("config demo --set data.tasks=[densty]", ("'densty'", "did you mean density?")),
    "16": ("config demo --set data.modalities=[ffdm_ccc]", ("'ffdm_ccc'", "did you mean ffdm_cc?")),
    "17": ("config demo --set model.mtoe.num_heads=5", ("does not divide model.dim=64", "choose one of 1, 2, 4, 8")),
    "18": ("config demo --set data.image_size=[65,56]", ("patches of 8 pixels do not divide", "write e.g. [64, 56]")),
    "19": ("config {w}/syntax.yaml", ("syntax.yaml:2: not valid YAML", "check brackets")),
    "20": ("config {w}/scalar.yaml", ("scalar.yaml:1: run must be a mapping, got 3",)),
    "21": ("config {w}/extends.yaml", ("extends.yaml:2: `extends`: no such configuration: nothing.yaml",)),
    "22": ("config {w}/twice.yaml", ("twice.yaml:2: duplicate key name", "first given at", "twice.yaml:1")),
    "latin": ("config {w}/latin.yaml", ("is not a text file in UTF-8", "save it as plain text")),
    "null": ("config demo --set model.dim=null", ("model.dim must be a whole number, got null",)),
    "inf": ("config demo --set loss.alpha=.inf", ("loss.alpha must be a finite number, got inf",)),
    "23": ("", ("COMMAND is needed", "see `m4oe --help`")),
    "24": ("evalute", ("'evalute'", "did you mean evaluate?")),
    "25": ("train", ("--ds_config is needed", "zero2", "see `m4oe train --help`")),
    "26": ("train --ds_config zero22", ("no such DeepSpeed configuration: zero22", "did you mean zero2?")),
    "27": ("train --ds_config {w}/right.yaml", ("is no DeepSpeed configuration", "this one to --config")),
    "27b": ("train --ds_config zero2 --config {w}/batch.json", ("is no configuration", "this one to --ds_config")),
    # what is in a run folder and what is not
    "28": ("evaluate {w}/runs/nope", ("no such run folder", "there: {w}/runs/one")),
    "29": ("evaluate {w}/runs/one --split tests", ("no split 'tests' here", "there are: test, train, val")),
    "39": ("export {w}/runs/one --checkpoint step-1", ("'step-1'", "step-00000001, step-00000002")),
    "40": ("analyze {w}/runs/one --only contributon", ("no analysis contributon", "did you mean contribution?")),
    "41": ("analyze {w}/runs/nope", ("no such run folder", "name a folder under runs/")),
    "66": ("evaluate {w}/bare", ("no consolidated weights", "no checkpoints either", "train it to its end")),
    "65": ("evaluate {w}/checkpointed", ("no consolidated weights", "m4oe export", "step-00000001")),
    "67": ("evaluate {w}/damaged", ("is damaged: 100 bytes", "m4oe export", "step-00000001")),
    "67b": ("predict {w}/damaged --dicom {w}/rsna --out {w}/p", ("is damaged: 100 bytes", "m4oe export")),
    "67c": ("analyze {w}/damaged", ("is damaged: 100 bytes", "m4oe export")),
    "72": ("analyze {w}/runs/one --tasks risk9", ("no classification task risk9", "choose among birads")),
    "73": ("analyze {w}/runs/one --baseline {w}/none", ("not analysed yet", "m4oe analyze {w}/none")),
    "74": ("analyze {w}/runs/one --sweep {w}/none.csv", ("no such file", "m4oe compare --sweep")),
    "74b": ("analyze {w}/runs/one --sweep {w}/sweep.csv --metric auorc", ("'auorc'", "did you mean auroc?")),
    "75": ("analyze {w}/runs/one --unimodal ffdm={w}/runs/one", ("'ffdm=", "MODALITY=RUN with ffdm_cc, ffdm_mlo")),
    "75b": ("analyze {w}/runs/one --unimodal ffdm_cc={w}/no", ("no such run folder",)),
    "77": ("export {w}/bare", ("has no complete checkpoint",)),
    "truth": ("analyze {w}/runs/one --truth {w}/batch.json", ("batch.json", "it has no samples", "truth.json")),
    "mapping": ("analyze {w}/runs/one --mapping {w}/sweep.csv", ("does nothing", "leave --mapping out")),
    "80": ("predict {w}/runs/one --dicom {w}/no --out {w}/p", ("is not a folder", "--dicom")),
    "81": ("predict {w}/runs/one --dicom {w}/rsna --out {w}/shards", ("is not empty", "choose another --out")),
    "98": ("evaluate {w}/runs/one --data {w}/no", ("--data: no shard folder", "m4oe convert")),
    "figures": ("figures --only fig9", ("--only", "no table or figure fig9", "fig3")),
    "figures2": ("figures --output {w}/cut --dry-run", ("figures.json", "is damaged: 5 bytes, no JSON")),
    "diff": ("diff {w}/runs/one {w}/runs/one", ("is given twice", "name two different runs")),
    "diff2": ("diff {w}/runs/one {w}/checkpointed", ("no predictions of the split 'test'", "m4oe evaluate")),
    "report": ("report {w}/runs/one", ("no results yet", "m4oe evaluate {w}/runs/one")),
    "report2": ("report {w}/reported", ("environment.json", "is damaged: 5 bytes, no JSON", "copy the run again")),
    # other commands
    "31": ("plan --config demo --cluster 4xA1000", ("'A1000'", "did you mean A100-80?")),
    "112": ("plan --config demo --ds_config nope.json", ("no such DeepSpeed configuration: nope.json",)),
    "113": ("plan --config demo --batch 0", ("--batch: write a whole number from 1, got '0'",)),
    "plan": ("plan --config demo --out {w}/right.yaml", ("is not named *.json", "choose another --out")),
    "33": ("convert --dataset ember --root {w} --out {w}/o", ("--dataset: 'ember'", "did you mean embed?")),
    "34": ("convert --dataset embed --root {w}/no --out {w}/o", ("is not a folder", "--root")),
    "35": ("convert --dataset embed --root {w} --out {w}/shards", ("exists already", "choose another --out")),
    "36": ("convert --dataset embed --root {w}/rsna --out {w}/o", ("the tables of rsna", "use --dataset rsna")),
    "36b": ("convert --dataset rsna --root {w} --out {w}/o", ("not here but in {w}/rsna", "give that as --root")),
    "37": ("inspect {w}/no", ("no such folder", "m4oe convert")),
    "38": ("inspect {w}/rsna", ("holds no train, val or test folder", "m4oe convert")),
    "42": ("compare --methods our --dry-run", ("--methods: unknown method 'our'", "did you mean ours?")),
    "43": ("compare --preset big", ("--preset: 'big'", "known: smoke, small, paper")),
    "44": ("compare --datasets embd --dry-run", ("--datasets", "'embd'", "did you mean embed?")),
    "44b": ("compare --seeds -1 --dry-run", ("--seeds", "write whole numbers from 0")),
    "44c": ("compare --set mdel.dim=3 --methods ours --dry-run", ("unknown key mdel", "did you mean model?")),
    "92": ("compare --cell 9999 --methods ours --datasets embed", ("no cell 9999", "numbered from 0")),
    "93": ("scale run --experts 7 --ep 2 --world 2 --output {w}/s", ("no point is possible", "--experts")),
    "97": ("analyze {w}/runs/one --limit -5", ("--limit: write a whole number from 0, got '-5'",)),
    "101": ("convert --dataset embed --root {w} --out {w}/o --part 5/4", ("'5/4' is not k/n", "use e.g. 3/16")),
    "102": ("convert --dataset embed --root {w} --out {w}/o --split 70/20", ("'70/20'", "use e.g. 70/10/20")),
    "103": ("convert --dataset embed --root {w} --out {w}/o --rows -5", ("--rows: write a whole number from 1",)),
    "104": ("phantom --layout embed --out {w}/rsna", ("is not empty", "choose another folder")),
    "105": ("phantom --layout embed --out {w}/o --patients -3", ("--patients: write a whole number from 1",)),
    "106": ("phantom --layout embed --out /proc/o", ("cannot write to /proc", "choose another --out")),
    "107": ("convert --dataset rsna --root {w}/rsna --out /proc/o", ("cannot write to /proc", "--out")),
    "init": ("init {w}/right.yaml", ("right.yaml", "is a file, not a folder", "choose another DIR")),
    "init2": ("init /proc/x", ("cannot write to /proc", "choose another DIR")),
    "models": ("models --card emebd", ("'emebd'", "did you mean embed?")),
    "card": ("card chekc {w}/right.yaml", ("'chekc'", "did you mean check?")),
    "card2": ("card new --table {w}/none.csv", ("is not here", "--table")),
    # training
    "46": (f"{TRAIN} --ds_config {{w}}/batch.json", ("is 48 in {w}/batch.json", "run.expects says 32 (demo)")),
    "47": (f"{TRAIN} --ds_config {{w}}/product.json --gpus 1", ("32 is not 5 samples", "change one of the three")),
    "48": (f"{TRAIN} --ds_config {{w}}/scheduler.json", ("scheduler must go", "`schedule` of the YAML")),
    "49": (f"{TRAIN} --ds_config {{w}}/stage.json", ("zero_optimization.stage is 0; use 1, 2 or 3",)),
    "50": (f"{TRAIN} --ds_config {{w}}/optimzer.json", ("unknown key optimzer", "did you mean optimizer?")),
    "50b": (f"{TRAIN} --ds_config {{w}}/listed.json", ("zero_optimization must be an object in braces, got []",)),
    "50c": (f"{TRAIN} --ds_config {{w}}/nolr.json", ("optimizer.params.lr is missing",)),
    "51": (f"{TRAIN} --ds_config {{w}}/cut.json", ("cut.json:1: not valid JSON", "m4oe init")),
    "52": (f"{TRAIN} --ds_config {{w}}/negative.json", ("lr must be a finite number from 0", "got -0.0001")),
    "58": (f"{TRAIN} --set data.root={{w}}/no", ("data.root: no shard folder", "m4oe convert")),
    "62": (f"{TRAIN} --resume never --output {{w}}/runs/one", ("already holds a run", "--resume auto")),
    "63": (f"{TRAIN} --resume {{w}}/runs/one", ("not a checkpoint", "step-00000001, step-00000002")),
    "84": (f"{TRAIN} --set data.root={{w}}/part", ("no val split", "it has test, train")),
    "88": (f"{TRAIN} --set data.workers=-1", ("data.workers=-1 must be at least 0",)),
    "90": (f"{TRAIN} --set model.embedder.weights={{w}}/none.pth", ("model.embedder.weights", "no such file")),
    "96": (
        f"{TRAIN} --set loss.tasks={{{{density:{{{{weight:2}}}}}}}}",
        ("unknown key", "write a blank after the colon"),
    ),
    "114": (f"{TRAIN} --output /proc/run", ("cannot write to /proc", "choose another --output")),
    "out": (f"{TRAIN} --output {{w}}/shards", ("{w}/shards: holds shards", "choose another --output")),
    "out2": (f"{TRAIN} --output {{w}}/runs", ("{w}/runs: holds other runs", "choose another --output")),
    "out3": ("diff {w}/runs/one {w}/checkpointed --output {w}/runs/one", ("is the folder of a run", "--output")),
    "out4": ("export {w}/runs/one --checkpoint latest --out {w}/shards", ("no latest checkpoint",)),
    "out5": ("export {w}/runs/one --checkpoint step-00000001 --out {w}/shards", ("holds shards", "another --out")),
    "out6": ("export {w}/runs/one --checkpoint step-00000001 --out {w}/x.pt", ("is not named *.safetensors",)),
    "out7": ("scale run --output {w}/shards --dry-run", ("{w}/shards: holds shards", "choose another --output")),
    "out8": ("compare --output {w}/runs/one --dry-run", ("is the folder of a run", "choose another --output")),
    "out9": ("figures --output {w}/shards --dry-run", ("{w}/shards: holds shards", "choose another --output")),
    "out10": ("predict {w}/runs/one --dicom {w}/rsna --out /proc/p", ("cannot write to /proc", "another --out")),
    "out11": (
        "plan --config demo --ds_config {w}/batch.json --out {w}/batch.json",
        ("--out {w}/batch.json: is the file of --ds_config", "name another file"),
    ),
    "salt": (
        "predict {w}/runs/one --dicom {w}/rsna --out {w}/p --salt-file {w}/rsna",
        ("--salt-file: {w}/rsna is a folder", "name a file"),
    ),
    "moved": (
        "predict {w}/runs/one --dicom {w}/rsna --out {w}/p --data {w}/no",
        ("--data: no shard folder", "leave it out"),
    ),
    "scheme": (f"{TRAIN} --set data.root=htp://x/y", ("data.root: unknown kind of address htp://", "use http")),
    "s3": (f"{TRAIN} --set data.root=s3://bucket/x", ("data.cache_dir: is empty", "name a local folder")),
    "phantoms": (f"{TRAIN} --set data.root={{w}}/rsna --set data.phantom.root={{w}}/rsna", ("no train split in",)),
    "phantoms2": (f"{TRAIN} --set data.root={{w}}/right.yaml", ("is a file, not a folder of shards",)),
    "phantoms3": (f"{TRAIN} --set data.root=/proc/x --set data.phantom.root=/proc/x", ("cannot write to /proc",)),
    "init_from": (f"{TRAIN} --set model.init_from={{w}}/rsna", ("neither a run nor an export", "it must hold")),
    "init_from2": (f"{TRAIN} --set model.init_from={{w}}/damaged", ("is damaged: 100 bytes", "m4oe export")),
    "init_from3": (f"{TRAIN} --set model.init_from={{w}}/right.yaml", ("is a file, but no *.safetensors",)),
    "weights": (f"{TRAIN} --set model.embedder.weights={{w}}/rsna", ("is a folder, not a file of weights",)),
    "weights2": (f"{TRAIN} --set model.embedder.weights={{w}}/right.yaml", ("is no file of weights", "give a")),
    "configuration": ("models --card {w}/right.yaml", ("is a configuration, not a card", "give it to --config")),
    "dear": ("scale simulate --output {w}/s --gpu A1000", ("--gpu: unknown accelerator", "did you mean A100-80?")),
    "one_of": ("predict {w}/runs/one --out {w}/p", ("--table or --dicom is needed", "m4oe predict --help")),
    "excluded": (
        "predict {w}/runs/one --out {w}/p --dicom {w}/rsna --table {w}/sweep.csv",
        ("--table: excludes --dicom; give one of them",),
    ),
    "minus": ("plan --config demo --cluster -1xA100-80", ("--cluster: needs a value", "written --cluster=-")),
    "twice1": ("analyze {w}/runs/one --only utilisation,utilisation", ("--only: has utilisation twice",)),
    "twice2": ("compare --seeds 0,0 --dry-run", ("--seeds: has 0 twice; leave one out",)),
    "twice3": ("scale run --output {w}/s --experts 8,8 --dry-run", ("--experts: has 8 twice",)),
    "twice4": (
        "analyze {w}/runs/one --unimodal ffdm_cc={w}/runs/one --unimodal ffdm_cc={w}/bare",
        ("--unimodal: has ffdm_cc twice",),
    ),
    "nothing": ("analyze {w}/runs/one --only ,", ("--only: cannot read ','", "write names")),
    "nothing2": ("figures --only , --dry-run", ("--only: cannot read ','", "write names")),
    "idle": ("analyze {w}/runs/one --metric auroc", ("--metric: does nothing without --sweep",)),
    "idle2": ("compare --samples embed=5 --dry-run", ("--samples: is for an estimate", "--cluster")),
    "itself": ("analyze {w}/runs/one --baseline {w}/runs/one", ("is the run itself; name another run",)),
    "collect": ("compare --collect --cell 0", ("--collect: runs nothing", "leave it out, or --cell")),
    "collect2": ("compare --collect --output {w}/none", ("{w}/none: no such comparison", "leave out --collect")),
    "edited": ("evaluate {w}/runs/one --data {w}/edited", ("manifest.json: damaged: num_samples is 99", "hold 2")),
    "edited2": (f"{TRAIN} --set data.root={{w}}/edited", ("manifest.json: damaged: num_samples is 99", "hold 4")),
    "cut2": ("evaluate {w}/runs/one --data {w}/short", ("100 bytes instead of", "copy it again")),
    "cut3": (f"{TRAIN} --set data.root={{w}}/short", ("100 bytes instead of", "copy it again")),
    "lost": ("analyze {w}/runs/one --data {w}/lost --only utilisation", ("is missing", "copy it again")),
    "lost2": (f"{TRAIN} --set data.root={{w}}/lost", ("is missing", "copy it again")),
    "other": (
        f"{TRAIN} --set data.dataset=vindr",
        ("holds embed, but data.dataset is vindr", "set data.dataset=embed"),
    ),
    "hollow": ("evaluate {w}/hollow", ("config.yaml: is damaged: 0 bytes", "copy the run again")),
    "hollow2": ("report {w}/hollow", ("config.yaml: is damaged: it has no options", "copy the run again")),
    "gpus": (f"{TRAIN} --gpus -2", ("--gpus", "write a whole number from 1")),
}


def folder(root: Path) -> Path:
    """Makes what ``{w}`` stands for."""
    shards.write(root / "shards", {"train": 4, "val": 2, "test": 2})
    shards.write(root / "part", {"train": 4, "test": 2})
    for name in ("edited", "short", "lost"):
        shutil.copytree(root / "shards", root / name)
    for manifest in (root / "edited").glob("*/manifest.json"):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "num_samples": 99}))
    for shard in (root / "short").glob("*/*.tar"):
        shard.write_bytes(shard.read_bytes()[:100])
    for shard in (root / "lost").glob("*/*.tar"):
        shard.unlink()
    (root / "rsna").mkdir()
    (root / "rsna" / "train.csv").write_text("patient_id\n")
    texts = {
        "syntax": "run: {name: x\nmodel: {dim: 4}\n",
        "scalar": "run: 3\n",
        "extends": "run: {}\nextends: nothing.yaml\n",
        "twice": "run: {name: x,\n  name: y}\n",
        "right": "run: {name: mine}\n",
    }
    for name, text in texts.items():
        (root / f"{name}.yaml").write_text(text)
    (root / "latin.yaml").write_bytes("run: {name: é}\n".encode("latin-1"))
    for name, content in WRONG_JSON.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    (root / "cut").mkdir()
    (root / "cut" / "figures.json").write_text('{"st:')
    (root / "cut.json").write_text('{"train_batch_size": 32,')
    columns = "option,value,data set,method,task,metric,mean,spread,seeds"
    (root / "sweep.csv").write_text(f"{columns}\nexperts,4,embed,ours,density,auroc,0.9,,1\n")
    for name, weights, checkpoints in (
        ("runs/one", _weights(), 2),
        ("bare", b"", 0),
        ("checkpointed", b"", 1),
        ("damaged", bytes(100), 1),
    ):
        _run(root / name, root / "shards", weights, checkpoints)
    _run(root / "hollow", root / "shards", b"", 0)
    (root / "hollow" / "config.yaml").write_text("")
    (root / "hollow" / "metrics.json").write_text('{"test": {"n": 0, "n_groups": 0, "tasks": {}}}')
    _run(root / "reported", root / "shards", b"", 0)
    (root / "reported" / "metrics.json").write_text('{"test": {"n": 0, "n_groups": 0, "tasks": {}}}')
    (root / "reported" / "environment.json").write_text('{"a":')
    return root


def _weights() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def _run(path: Path, data: Path, weights: bytes, checkpoints: int) -> None:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"data: {{dataset: embed, root: {data}}}\n")
    (path / "log.jsonl").write_text("")
    (path / "data.json").write_text("{}")
    if weights:
        (path / "weights").mkdir()
        (path / "weights" / "model.safetensors").write_bytes(weights)
    for number in range(checkpoints):
        folder = path / "checkpoints" / f"step-{number + 1:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
