"""Nothing in the package knows a data set by name: data sets, modalities and tasks are what their cards say.

Strings (docstrings apart), identifiers and templates are searched for the names of the shipped cards, of their
modalities and tasks, and for a few words of their trades. What may stand somewhere is listed here with its reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from m4oe_ds.data.cards import find_card, shipped

ROOT = Path(__file__).parents[2]
PACKAGES = ("m4oe_ds", "data_tools")
TRADES = ("breast", "breasts", "mammogram", "mammograms", "mammography", "cancer", "women", "woman", "eyes", "retina")

# archives that have a reader of their own, and what only these readers use
ARCHIVES = (
    *(f"data_tools/archives/{path.name}" for path in (ROOT / "data_tools" / "archives").glob("*.py")),
    "data_tools/phantom/",  # synthetic archives in the layouts of the real ones
    "data_tools/convert/eye.py",
    "data_tools/convert/mammogram.py",
    "data_tools/convert/film.py",
    "data_tools/pixels/breast.py",
)
EVERYWHERE = {  # words that are also English or mathematics, as identifiers
    "embed": "what embedders do",
    "gamma": "a factor or an exponent of augmentation, losses and schedules",
    "eye": "the identity matrix of numpy and torch",
}
PREFIX = r"\.(startswith|removeprefix|split|partition)\(|re\.\w+\("
CITED = "titles of papers"
OPTIONS = "options that only the readers of the archives take"
ALLOWED: dict[str, dict[str, str]] = {  # file: word: why
    "m4oe_ds/config.py": {"embed": "the default of data.dataset: a configuration without one is that of the demo"},
    "m4oe_ds/models/systems.py": dict.fromkeys(("breast", "cancer", "mammography", "eye", "gamma", "glaucoma"), CITED),
    "m4oe_ds/models/embedders.py": {"embed": "patch_embed, the name that timm gives the first layer"},
    "m4oe_ds/config_tasks.py": {"gamma": "loss.default.gamma, the exponent of the focal loss"},
    "m4oe_ds/models/backbone_names.py": {"embed": "embed_dim and no_embed_class, options of timm"},
    "m4oe_ds/models/parts.py": {
        "embed": "what names of parameters hold: pos_embed, task_embed",
        "gamma": "the scale of a layer, as timm calls it",
    },
    "m4oe_ds/training/parameter_groups.py": {"embed": "what names of parameters hold that Muon leaves to Adam"},
    "m4oe_ds/predict/headers.py": {"mammogram": "why a file of mammography DICOM is left out: it reads no other"},
    "m4oe_ds/predict/exams.py": {
        "women": "what the rules of an archive's reader say of sex",
        "mammogram": "what is looked for in the folder: DICOM headers tell no others apart",
    },
    "m4oe_ds/predict/job.py": {"mammogram": "the treatment that a reader's images get"},
    "m4oe_ds/runs/initialise.py": {"embed": "patch_embed and pos_embed of timm, task_embed of the MToE"},
    "m4oe_ds/predict/samples.py": {"mammogram": "the converter's name for its treatment of such images"},
    "data_tools/convert/conversion.py": {"birads": OPTIONS, "mammogram": "the treatment that a reader's images get"},
    "data_tools/convert/images.py": {"eye": "the treatment that a reader's images get"},
    "data_tools/convert/sample.py": {"mammogram": "the treatment that a reader's images get"},
    "data_tools/convert/report.py": {"breast": "warnings about the treatment that a reader's images get"},
    "data_tools/pixels/picture.py": {"breast": "switches off the check of grayscale.py for one's own images"},
    "data_tools/pixels/grayscale.py": {"breast": "why a film is put aside; only the readers' images come here"},
    "data_tools/convert/options.py": dict.fromkeys(("birads", "breasts", "embed", "rsna", "gamma"), OPTIONS),
}


def words() -> set[str]:
    """Names of the shipped cards, of their modalities, tasks and units, in lower case."""
    found = set(TRADES)
    for name in shipped():
        card = find_card(name)
        found |= {card.name, card.unit, *card.modalities, *(task.name for task in card.tasks)}
    return {word.lower() for word in found}


def constants(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and texts of string constants that are not docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and names of what code defines, takes or reads."""
    for node in ast.walk(tree):
        name = {
            ast.Name: "id",
            ast.Attribute: "attr",
            ast.arg: "arg",
            ast.keyword: "arg",
            ast.FunctionDef: "name",
            ast.ClassDef: "name",
        }.get(type(node))
        if name and getattr(node, name):
            yield getattr(node, "lineno", 0), getattr(node, name)


def runs(name: str) -> set[str]:
    """All runs of the parts of ``a_b_c``: a, a_b, a_b_c, b, .."""
    parts = name.split("_")
    return {"_".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}


def by_prefix(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and texts that tell tasks of follow-up by how their names begin: ``name.startswith("risk")``, risk1."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and re.search(r"\brisk\{", ast.unparse(node)):
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and re.search(PREFIX, ast.unparse(node)):
            for argument in node.args[:2]:
                if isinstance(argument, ast.Constant) and re.fullmatch(r"\^?risk[_(\[\\]?.*", str(argument.value)):
                    yield node.lineno, ast.unparse(node)


def in_text(text: str, known: set[str]) -> set[str]:
    """Known words in a text, and names that begin like a task of follow-up."""
    found = {run for word in re.findall(r"[a-z0-9_]+", text.lower()) for run in runs(word)} & known
    return found | set(re.findall(r"\brisk(?=\d|\{|\.\.)", text.lower()))


def in_name(name: str, known: set[str]) -> set[str]:
    """Known words that are the whole of an identifier, or parts of it, but for those of EVERYWHERE."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    found = (runs(snake) & known) - EVERYWHERE.keys()
    return found | ({"risk"} if re.fullmatch(r"is_risk|risk\d+|risks?_(tasks?|names?|labels?)", snake) else set())


def problems(path: Path, text: str, known: set[str], allow: bool = True) -> list[str]:
    """What a file says that only a card may say; ``allow``: but for what is allowed there."""
    where = path.as_posix()
    if path.suffix == ".py":
        tree = ast.parse(text)
        hits = [(line, word, value) for line, value in constants(tree) for word in in_text(value, known)]
        hits += [(line, "risk", call) for line, call in by_prefix(tree)]
        hits += [(line, word, name) for line, name in identifiers(tree) for word in in_name(name, known)]
    else:
        hits = [(n, word, line) for n, line in enumerate(text.splitlines(), 1) for word in in_text(line, known)]
    allowed = ALLOWED.get(where, {}) if allow else {}
    return [f"{where}:{line}: {word} in {value[:60]!r}" for line, word, value in hits if word not in allowed]


def files() -> list[Path]:
    found = [
        path.relative_to(ROOT)
        for package in PACKAGES
        for kind in ("*.py", "*.j2")
        for path in (ROOT / package).rglob(kind)
    ]
    return [path for path in sorted(found) if not path.as_posix().startswith(ARCHIVES)]


def test_only_cards_and_readers_know_data_sets_by_name() -> None:
    known = words()
    found = [line for path in files() for line in problems(path, (ROOT / path).read_text(encoding="utf-8"), known)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_what_is_allowed_is_still_there(name: str) -> None:
    found = "\n".join(problems(Path(name), (ROOT / name).read_text(encoding="utf-8"), words(), allow=False))
    assert [word for word in ALLOWED[name] if f": {word} in " not in found] == []


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('TASKS = ("density", "other")', "density"),
        ('if name.startswith("risk"): pass', "risk"),
        ('year = re.sub(r"risk_?", "", name)', "risk"),
        ('text = f"risk{year}"', "risk"),
        ('say("one breast of one exam")', "breast"),
        ("def convert_fundus(): pass", "fundus"),
        ("image = batch.views.ffdm_cc", "ffdm_cc"),
        ("for risk_task in tasks: pass", "risk"),
        ('dataset = "gamma"', "gamma"),
        ('key = "label_density"', "density"),
    ],
)
def test_a_planted_name_is_found(line: str, word: str) -> None:
    (found,) = problems(Path("m4oe_ds/planted.py"), f'"""About density and breasts."""\n{line}\n', words())
    assert found.startswith(f"m4oe_ds/planted.py:2: {word} in ")


def test_a_planted_name_is_found_in_a_template() -> None:
    assert problems(Path("m4oe_ds/report/templates/page.html.j2"), "<p>{{ n }} eyes</p>", words())


def test_english_and_mathematics_stay_possible() -> None:
    text = "x = torch.eye(3)\ny = config.gamma * patch_embed(x)\nchance = risk_set(x)\n'asymmetry at risk'\n"
    text += "z = found.get('risk')[f'risk_{name}']\n"
    assert problems(Path("m4oe_ds/fine.py"), text, words()) == []
