"""Which systems fit a card, by rules on kinds, views and sides; the others are refused in a line that says why."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from m4oe_ds.cli import main
from m4oe_ds.config import Config, DataConfig, ModelConfig
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import Column, ModalitySpec, TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import available, build
from m4oe_ds.models.fit import Question
from m4oe_ds.models.systems import unfit

PICTURE = ModalitySpec("slice")
GRADE = TaskSpec("grade", "ordinal", 3, ("a", "b", "c"))
MASK = TaskSpec("lesion", "mask", 1, ("lesion",), of="slice")
KIND = TaskSpec("region", "classes", 3, ("a", "b", "c"))
PLAIN = Question((PICTURE,), (GRADE,), False)
VIEWS = tuple(ModalitySpec(f"{t}{v}", type=t, view=v) for t in ("ffdm", "syn") for v in ("cc", "mlo"))


def fitting(question: Question, compared: bool = False) -> set[str]:
    return {name for name in available() if not unfit(name, question, compared=compared)}


EVERYBODY = set(available()) - {"mirai", "asymmirai"}


def test_the_compared_systems_read_images_and_ours_and_soft_moe_everything() -> None:
    table = ModalitySpec("clinic", "table", columns=(Column("age", "number"),))
    scan = ModalitySpec("scan", "volume")
    for odd in (table, scan):
        question = replace(PLAIN, inputs=(PICTURE, odd))
        assert fitting(question) == {"m4oe", "soft_moe"}
        assert "images only" in unfit("soft_moe", question, {"regime": "native"})
    assert "lesion lies over scan" in unfit(
        "soft_moe", replace(PLAIN, inputs=(scan,), tasks=(replace(MASK, of="scan"),))
    )
    assert fitting(PLAIN) == EVERYBODY
    assert fitting(replace(PLAIN, inputs=(ModalitySpec("scan", "volume", slices=8),))) == EVERYBODY


def test_numbers_and_survival_are_not_for_heads_of_evidence_or_grades() -> None:
    for task in (TaskSpec("pressure", "number", 1), TaskSpec("death", "survival", 2, horizons=(1.0, 2.0))):
        question = replace(PLAIN, tasks=(GRADE, task))
        assert fitting(question) == EVERYBODY - {"eyemost", "eyestar"}
        assert f"{task.name} is of kind {task.kind}" in unfit("eyemost", question)


def test_each_system_has_its_own_needs() -> None:
    assert "mirai" in fitting(replace(PLAIN, inputs=VIEWS))
    assert "view none and type none" in unfit("mirai", PLAIN)
    assert "asymmirai" in fitting(replace(PLAIN, sides=True))
    assert "lesion is one" in unfit("asymmirai", replace(PLAIN, sides=True, tasks=(MASK,)))
    assert "no two sides" in unfit("asymmirai", PLAIN)
    cross = {"pairs": "cross_type"}
    assert unfit("asymmirai", replace(PLAIN, inputs=VIEWS), cross) == ""
    assert "ffdmcc has no partner" in unfit("asymmirai", replace(PLAIN, inputs=VIEWS[:2]), cross)
    assert "region is of kind classes" in unfit("eyestar", replace(PLAIN, tasks=(KIND,)))


def test_what_can_be_trained_need_not_make_sense_in_a_comparison() -> None:
    assert unfit("eyestar", PLAIN) == ""
    assert "mask and a grade" in unfit("eyestar", PLAIN, compared=True)
    assert "eyestar" in fitting(replace(PLAIN, tasks=(GRADE, MASK)), compared=True)
    assert unfit("eyemost", replace(PLAIN, inputs=VIEWS)) == ""
    assert "ffdmcc and ffdmmlo are of one type" in unfit("eyemost", replace(PLAIN, inputs=VIEWS), compared=True)


@pytest.mark.parametrize("card", ["embed", "gamma"])
def test_the_archives_have_the_systems_of_the_paper(card: str) -> None:
    mammograms, eyes = {"mirai", "asymmirai"}, {"eyemost", "eyestar"}
    left_out = eyes if card == "embed" else mammograms
    assert fitting(Question.of(find_card(card)), compared=True) == set(available()) - left_out


def test_a_model_that_does_not_fit_is_not_built() -> None:
    config = Config(model=ModelConfig(name="mirai"), data=DataConfig(dataset="gamma"))
    with pytest.raises(ConfigError, match=r"mirai does not fit gamma: it tells .* fundus view none .* `m4oe models"):
        build(config)


def test_the_command_says_which_fit_and_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "heads.yaml"
    path.write_text(
        "name: heads\nmodalities:\n  ct: {kind: image}\n  scan: {kind: volume}\n"
        "tasks:\n  region: {kind: classes, classes: [a, b, c]}\n"
    )
    assert main(["models", "--card", str(path)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.pop("m4oe") == "fits"
    assert lines.pop("soft_moe") == "fits"
    assert set(lines) == set(available()) - {"m4oe", "soft_moe"}
    assert all(text.startswith("no: ") for text in lines.values())
    assert "scan is a volume in 3-D" in lines["aide"]
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{dataset: {path}, modalities: [ct]}}\n")
    assert main(["models", "--config", str(config)]) == 0
    assert "aide         fits" in capsys.readouterr().out
    assert main(["models", "--config", str(config), "--card", "embed"]) == 3


def test_the_question_needs_no_torch() -> None:
    code = (
        "import sys; from m4oe_ds.cli import main; main(['models', '--card', 'embed']); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
