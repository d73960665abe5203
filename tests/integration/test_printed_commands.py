"""Every command printed in README and docs, as printed: run, or checked as far as printed.RULES says, or told apart.

All share one folder that stands for a reader's: shards of few synthetic patients where the demo has its own, a run that
is trained on them by the first printed command, small archives under the names that the pages use, a table with files.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.demo import make_phantom_shards
from m4oe_ds.cli import main, parser
from m4oe_ds.config import PhantomConfig
from tests.integration import any_exam, commands, printed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

COMMANDS = printed.every_command()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reader")
    for name in ("configs", "ds_configs", "slurm", "train.py", "constraints.txt"):
        (made / name).symlink_to(commands.ROOT / name)
    phantom = PhantomConfig(root=str(made / "data" / "demo"), patients=20, risk_prevalence=0.5, image_size=(128, 104))
    make_phantom_shards("embed", phantom)  # as training does, but fewer patients
    other = dataclasses.replace(phantom, root=str(made / "data" / "other-hospital"), seed=1, patients=12)
    make_phantom_shards("embed", other)
    any_exam.lesion_and_blood(made)
    with (made / "cases.csv").open() as stream:
        rows = [{k: v for k, v in row.items() if k not in ("Diagnosis", "Thickness")} for row in csv.DictReader(stream)]
    with (made / "new.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:10])
    page = (commands.ROOT / "docs" / "guide" / "add-a-method.md").read_text()
    (made / "gated.py").write_text(re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)[0])
    (made / "exams").symlink_to(made / "archives" / "embed" / "images")
    return made


def test_every_printed_command_has_a_rule() -> None:
    unknown = [f"{one.page}:{one.line}: {one.text}" for one in COMMANDS if not one.how]
    assert not unknown, "say in tests/integration/printed.py what to do with them"
    for page in printed.PAGES:
        assert not printed.indented(page), f"{page}: put commands between ``` so that this test sees them"
    assert sum(one.how in ("run", "dry", "start") for one in COMMANDS) >= 40


def test_settings_are_read_by_a_script() -> None:
    scripts = "".join(path.read_text() for path in (commands.ROOT / "slurm").glob("*.*"))
    for page in printed.PAGES:
        for name in printed.settings_of(page):
            assert name in scripts or name.startswith(("NCCL_", "GLOO_")), f"{page}: nothing reads {name}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.page}:{one.line}")
def test_printed_command(
    command: printed.Command, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as in the reader's folder, of which python -m takes modules
    if command.how == "skip":
        pytest.skip(command.reason)
    if command.how == "start":
        start(command.words)
    elif command.how == "parse":
        parse(command)
    else:
        dry = command.how == "dry" and "--dry-run" not in command.words
        run([*command.words, *(["--dry-run"] if dry else [])])
    said = iter(capsys.readouterr().out.splitlines())
    assert [line for line in command.prints if line not in said] == []  # in this order


def run(words: list[str]) -> None:
    """Runs a command in this process; training in one of its own."""
    if words[:2] == ["m4oe", "train"]:
        done = subprocess.run(
            [sys.executable, "-m", "m4oe_ds", *words[1:]],
            env=commands.environment(PYTHONPATH=str(commands.ROOT)),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    elif words[0] == "m4oe":
        assert main(words[1:]) == 0
    else:
        assert words[:2] == ["python", "-m"]
        before, sys.argv = sys.argv, words[2:]
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(words[2], run_name="__main__")
        finally:
            sys.argv = before
        assert not ended.value.code


def request(words: list[str]) -> list[str]:
    """The options of a training command, whatever starts it, without those of the launcher."""
    if words[:2] == ["m4oe", "train"]:
        return words[1:]
    position = next(i for i, word in enumerate(words) if word.endswith("train.py"))
    return ["train", *words[position + 1 :]]


def start(words: list[str]) -> None:
    """What training checks before it imports torch; then a run without training for the commands that follow."""
    from m4oe_ds import entry
    from m4oe_ds.runs.request import prepare

    options = parser().parse_args(request(words))
    prepared = prepare(entry.request_of(options))
    if prepared.config.model.dim <= 64 and not prepared.folder.exists():
        untrained(prepared.config, prepared.folder)


def untrained(config: object, folder: Path) -> None:
    """A run folder with the weights that training starts from."""
    from safetensors.torch import save_file

    from m4oe_ds.config import Config, to_dict
    from m4oe_ds.models import build
    from m4oe_ds.runs.folder import write_yaml

    assert isinstance(config, Config)
    (folder / "weights").mkdir(parents=True)
    write_yaml(folder / "config.yaml", to_dict(config))
    model = build(config)
    named = (*model.named_parameters(), *model.named_buffers())
    state = {name: value.detach().clone().contiguous() for name, value in named}
    save_file(state, str(folder / "weights" / "model.safetensors"))


def parse(command: printed.Command) -> None:
    """Options, and the files that they name."""
    words = command.words
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        text = (commands.ROOT / script).read_text() + (commands.ROOT / "slurm" / "env.sh").read_text()
        assert subprocess.run([shutil.which("bash") or "bash", "-n", commands.ROOT / script]).returncode == 0
        for name in re.findall(r"\b([A-Z][A-Z_0-9]+)=", command.text):
            assert name in text, f"{script} does not read {name}"
    elif words[0] == "m4oe" and words[1] != "train":
        assert parser().parse_args(words[1:]).command == words[1]
    elif any(word.endswith("train.py") for word in words) or words[:2] == ["m4oe", "train"]:
        assert parser().parse_args(request(words)).command == "train"
    else:
        assert words[0] == "python"
        assert (commands.ROOT / words[1]).is_file()
