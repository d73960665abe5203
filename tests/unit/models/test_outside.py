"""Models from outside the package: what is refused before torch, what when they are built or answer, and how."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.config import Config, ModelConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.systems import Entry, find_system
from m4oe_ds.runs.objective import model_loss
from tests.distributed import problem

ROOT = Path(__file__).parents[3]
GOOD = """
import torch
from m4oe_ds.models.interface import Fused, ModelOutput, MultiModalModel, Tokens

class Model(MultiModalModel):
    def __init__(self, spec, config, experts_factory):
        super().__init__()
        self.bias = torch.nn.ParameterDict({t.name: torch.nn.Parameter(torch.zeros(t.num_classes)) for t in spec.tasks})

    def forward(self, batch):
        return ModelOutput({name: bias.expand(len(batch), -1) for name, bias in self.bias.items()})

def make(spec, config, experts_factory):
    return Model(spec, config, experts_factory)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of modules, forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good.py").write_text(GOOD)
    yield tmp_path  # type: ignore[misc]  # the annotation is what tests receive
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["good:Model", "good:make"])
def test_a_class_or_a_function_is_built_and_answers(name: str) -> None:
    config = problem.config(f"model.name={name}")
    model = build(config)
    output = model(problem.samples(spec_for(config), 3, seed=0))
    assert set(output.logits) == set(model.spec.task_names)
    assert find_system(name) == Entry(name, "", "outside")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("good:Modle", "good has no Modle; did you mean Model?"),
        ("nowhere_at_all:Model", "no module 'nowhere_at_all'; put its folder on PYTHONPATH"),
        ("good.deeper:Model", "no module 'good.deeper'"),
        ("good:Model:x", "'good:Model:x' is not a model of one's own; write package.module:Class"),
        ("broken:Model", "broken.py:2: "),
        ("package.inner:Model", "importing package failed: ZeroDivisionError"),
        ("asks.inner:Model", "importing asks failed: No module named 'no_such_library'; install what it needs"),
        ("strange:Model", "SYSTEM of strange: unknown key 'need'; did you mean needs?"),
        ("typed:Model", "own_experts must be of type bool, got 'yes'"),
        ("ruled:Model", "no rule 'image' for needs; did you mean images?"),
        ("computed:Model", "computed.py:1: SYSTEM must be a dictionary of literals"),
    ],
)
def test_what_is_refused_in_the_configuration(name: str, said: str, folder: Path) -> None:
    (folder / "broken.py").write_text("\nclass Model(:\n")
    for package, text in {"package": "1 / 0\n", "asks": "import no_such_library\n"}.items():
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(text)
        (folder / package / "inner.py").write_text("Model = 1\n")
    (folder / "strange.py").write_text("SYSTEM = {'need': ['images']}\nModel = 1\n")
    (folder / "typed.py").write_text("SYSTEM = {'own_experts': 'yes'}\nModel = 1\n")
    (folder / "ruled.py").write_text("SYSTEM = {'needs': ['image']}\nModel = 1\n")
    (folder / "computed.py").write_text("SYSTEM = dict(needs=[])\nModel = 1\n")
    with pytest.raises(ConfigError) as caught:
        config_loader.load("demo", [f"model.name={name}"])
    assert said in str(caught.value)
    assert "--set model.name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_configuration_is_checked_without_importing_the_module(folder: Path) -> None:
    (folder / "loud.py").write_text("raise SystemExit('imported')\nSYSTEM = {}\nclass Model: pass\n")
    load = "from m4oe_ds import config_loader; config_loader.load('demo', sys.argv[1:])"
    code = f"import sys; {load}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "model.name=loud:Model"]
    paths = {"PYTHONPATH": f"{ROOT}:{folder}", "PATH": ""}
    assert subprocess.run(command, env=paths, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Model: pass", "is not a subclass of m4oe_ds.models.interface.MultiModalModel"),
        ("Model = 3", "is not a subclass"),
        ("class Model(MultiModalModel):\n    def __init__(self, spec): pass", "too many positional arguments"),
        (
            "class Model(MultiModalModel):\n    def __init__(self, *a): super().__init__()",
            "does not define encode, fuse",
        ),
        ("def Model(*a): return 3", "gave a int, not a MultiModalModel"),
        ("import no_such_library\nModel = 1", "failed: ModuleNotFoundError: No module named 'no_such_library'"),
        ("Model = 1\ndel Model", "has no Model"),
    ],
)
def test_what_is_refused_when_it_is_built(text: str, said: str, folder: Path) -> None:
    (folder / "mine.py").write_text(f"from m4oe_ds.models.interface import MultiModalModel\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        build(problem.config("model.name=mine:Model"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("3", "answers with a int, not a ModelOutput"),
        ("ModelOutput({'density': torch.zeros(len(batch), 4)})", "gives no logits of birads, only of density"),
        ("ModelOutput({n: torch.zeros(len(batch), 9) for n in batch.tasks})", "of shape [3, 9], not [B, 3]"),
    ],
)
def test_a_wrong_answer_is_told(answer: str, said: str, folder: Path) -> None:
    (folder / "mine.py").write_text(
        GOOD.replace("ModelOutput({name: bias.expand(len(batch), -1) for name, bias in self.bias.items()})", answer)
    )
    config = problem.config("model.name=mine:Model")
    model = build(config)
    with pytest.raises(ConfigError) as caught:
        model(problem.samples(spec_for(config), 3, seed=0))
    assert said in str(caught.value)


def test_what_a_module_declares_holds(folder: Path) -> None:
    system = "SYSTEM = {'needs': ['pairs'], 'contralateral': True, 'own_experts': True, 'model_loss': 'mine:Loss'}\n"
    loss = "from m4oe_ds.losses.model_loss import ModelLoss\nclass Loss(ModelLoss): pass\n"
    (folder / "mine.py").write_text(system + GOOD + loss)
    assert find_system("mine:Model").needs == ("pairs",)
    config = config_loader.load("demo", ["model.name=mine:Model", "data.contralateral=true"])
    assert type(model_loss(config, spec_for(config))).__name__ == "Loss"
    with pytest.raises(ConfigError, match="does not fit gamma: it compares two sides of an exam"):
        config_loader.load("demo", ["model.name=mine:Model", "data.dataset=gamma"])
    (folder / "mine.py").write_text(system + GOOD + "Loss = dict\n")
    sys.modules.pop("mine")
    with pytest.raises(ConfigError, match="is not a subclass of"):
        model_loss(config, spec_for(config))


def test_compare_knows_it_and_says_how_to_write_one(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["compare", "--dry-run", "--datasets", "embed", "--settings", "multi", "--methods"]
    assert main([*chosen, "ours,good:Model"]) == 0
    assert "embed-multi-good.Model-seed0" in capsys.readouterr().out
    assert main([*chosen, "mirrai"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: --methods: unknown method 'mirrai'; did you mean mirai?")
    assert "package.module:Class" in said
    assert main([*chosen, "good:Other"]) == 3
    assert "good has no Other" in capsys.readouterr().err


def test_an_unknown_name_says_how_to_write_one_of_ones_own() -> None:
    with pytest.raises(ConfigError, match=r"did you mean mirai\?.*package\.module:Class"):
        build(Config(model=ModelConfig(name="mirrai")))
