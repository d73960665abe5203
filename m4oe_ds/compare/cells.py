"""The cells of a comparison: one training run each, a method on a data set in one setting with one seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from m4oe_ds.compare.ablations import parse_sweep
from m4oe_ds.compare.published import SETTINGS
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import outside
from m4oe_ds.models.fit import Question
from m4oe_ds.models.systems import find_system, unfit
from m4oe_ds.yaml_tree import nearest

REGIMES = ("vit", "native")


@dataclass(frozen=True)
class Subject:
    """A data set that is compared on.

    Attributes:
        name: of its card.
        question: modalities and tasks that are trained.
        columns: tasks that are scored, in the order of the tables.
    """

    name: str
    question: Question
    columns: tuple[str, ...]

    @classmethod
    def of(cls, card: Card, modalities: Sequence[str] = (), tasks: Sequence[str] = ()) -> Subject:
        """Modalities and tasks of a card, those named or all; columns: the card's headline, of these."""
        question = Question.of(card, modalities, tasks)
        names = [task.name for task in question.tasks]
        return cls(card.name, question, tuple(name for name in card.headline if name in names) or tuple(names))


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        label: name as printed.
        overrides: overrides of the configuration.
        single: whether the paper has single-task rows of it.
        paper: whether the paper's Table 1 has a multi-task row of it.
        weighted: whether its loss of classes has class weights; evidential and ordinal losses have none.
    """

    label: str
    overrides: tuple[str, ...]
    single: bool = False
    paper: bool = True
    weighted: bool = True

    @property
    def model(self) -> str:
        """Registered name."""
        return next((item.split("=")[1] for item in self.overrides if item.startswith("model.name=")), "m4oe")

    def refusal(self, question: Question, regime: str = "vit") -> str:
        """Why it makes no sense for these modalities and tasks, in words that follow its name; empty if it does."""
        return unfit(self.model, question, {"regime": regime}, compared=True)

    def for_tasks(self, question: Question) -> tuple[str, ...]:
        """Its overrides for these tasks."""
        coded = [task.name for task in question.tasks if task.coded]
        if self.weighted or not coded:
            return self.overrides
        plain = ", ".join(f"{name}: {{class_weight: none}}" for name in coded)
        return (*self.overrides[:1], f"loss.tasks={{{plain}}}", *self.overrides[1:])


def _compared(name: str, label: str, *more: str, single: bool = False, paper: bool = True) -> Method:
    entry = find_system(name)
    extra = ("data.contralateral=true",) if entry.contralateral else ()
    return Method(label, (f"model.name={name}", *extra, *more), single, paper, entry.class_weights)


_REPLACE, _APPEND = "model.attach_mtoe=replace", "model.attach_mtoe=append"

METHODS: dict[str, Method] = {
    "mirai": _compared("mirai", "Mirai", single=True),
    "mirai_mtoe": _compared("mirai", "Mirai + MToE", _REPLACE),
    "mirai_mtoe_append": _compared("mirai", "Mirai + MToE (appended)", _APPEND, paper=False),
    "asymmirai": _compared("asymmirai", "AsymMirai", single=True),
    "asymmirai_mtoe": _compared("asymmirai", "AsymMirai + MToE", _REPLACE),
    "asymmirai_mtoe_append": _compared("asymmirai", "AsymMirai + MToE (appended)", _APPEND, paper=False),
    "eyemost": _compared("eyemost", "EyeMoSt", single=True),
    "eyemost_mtoe": _compared("eyemost", "EyeMoSt + MToE", _REPLACE),
    "eyemost_mtoe_append": _compared("eyemost", "EyeMoSt + MToE (appended)", _APPEND, paper=False),
    "eyemost_plus": _compared("eyemost", "EyeMoSt+", "model.options={plus: true}", paper=False),
    "eyestar": _compared("eyestar", "EyeStar", single=True),
    "eyestar_mtoe": _compared("eyestar", "EyeStar + MToE", _REPLACE),
    "eyestar_mtoe_append": _compared("eyestar", "EyeStar + MToE (appended)", _APPEND, paper=False),
    "evif": _compared("evif", "EVIF", "model.options={private: 0.1, fused: 0.1}"),
    "fuller": _compared("fuller", "FULLER", "loss.gradient_policy=calibrated"),
    "aide": _compared("aide", "AIDE"),
    "mmodn": _compared("mmodn", "MModN"),
    "soft_moe": _compared("soft_moe", "Multi-modal Soft-MoE", paper=False),
    "ours_no_msoe": Method("Ours w/o MSoE", ("model.use_msoe=false",), single=True, paper=False),
    "ours_no_mtoe": Method("Ours w/o MToE", ("model.use_mtoe=false",)),
    "ours_no_mi": Method("Ours w/o MI", ("loss.alpha=0",), paper=False),
    "ours": Method("Ours", (), single=True),
}
GROUPS = ("all", "table1", "table2")  # names for several of them


def find_method(key: str) -> Method:
    """The method of a name; ``package.module:Class`` is one from outside the package, labelled with its class.

    Raises:
        ConfigError: unknown name (with the nearest known one), or nothing of the kind outside.
    """
    if outside.is_outside(key):
        return _compared(key, key.partition(":")[2], single=True, paper=False)
    if key not in METHODS:
        known = nearest(key, [*METHODS, *GROUPS])
        raise ConfigError(f"unknown method {key!r}{known}", "--methods", f"one of your own is written {outside.FORM}")
    return METHODS[key]


def in_order(keys: Iterable[str]) -> list[str]:
    """Names of methods, each once: the package's own in the order of the tables, then those from outside."""
    found = dict.fromkeys(keys)
    return [*(key for key in METHODS if key in found), *(key for key in found if key not in METHODS)]


# Table 2 of the paper: which of MToE, MSoE and MI are there
ABLATIONS = {
    "ours_no_mtoe": (False, True, False),
    "ours_no_msoe": (True, False, True),
    "ours_no_mi": (True, True, False),
    "ours": (True, True, True),
}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        dataset: name of the data set.
        method: key of METHODS, or ``package.module:Class``.
        setting: ``multi``, or the one task that is trained.
        seed: seed of the run.
        overrides: overrides of the preset's configuration, the method's included.
        sweep: ``experts=32``, ``alpha=0.1`` or empty.
        regime: encoders of a compared system, ``vit`` (those of our model) or ``native`` (its own).
        scored: tasks whose figures enter the tables.
    """

    dataset: str
    method: str
    setting: str
    seed: int
    overrides: tuple[str, ...]
    sweep: str = ""
    regime: str = "vit"
    scored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Folder of its run."""
        optional = [self.sweep.replace("=", ""), "native" if self.regime == "native" else ""]
        return "-".join(
            [
                *(self.dataset, self.setting, self.method.replace(":", ".")),
                *(part for part in optional if part),
                f"seed{self.seed}",
            ]
        )


def subjects_of(datasets: Sequence[str | Subject]) -> list[Subject]:
    """The data sets of these cards, each once.

    Raises:
        ConfigError: an unknown name.
    """
    found = [_named(one) if isinstance(one, str) else one for one in datasets]
    return list({subject.name: subject for subject in found}.values())


def _named(dataset: str) -> Subject:
    try:
        return Subject.of(find_card(dataset))
    except ConfigError as error:
        raise ConfigError(error.what, f"--datasets {error.where}".strip(), error.fix) from None


def left_out(datasets: Sequence[str | Subject], methods: Sequence[str], regime: str = "vit") -> list[str]:
    """A line per system and data set that it makes no sense for, which says why."""
    lines = {}
    for subject in subjects_of(datasets):
        for method in map(find_method, methods):
            if reason := method.refusal(subject.question, regime):
                lines[method.model, subject.name] = f"left out: {method.model} on {subject.name}: {reason}"
    return list(lines.values())


def enumerate_cells(
    datasets: Sequence[str | Subject],
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] = SETTINGS,
    regime: str = "vit",
    extra: Sequence[str] = (),
    sweeps: Sequence[str] = (),
) -> list[Cell]:
    """All runs that the tables need.

    Args:
        datasets: data sets, or names of their cards.
        methods: names (:func:`find_method`); a method is left out where it makes no sense (:func:`left_out`).
        seeds: one run each.
        settings: ``single`` (one run per column, of the methods with single-task rows), ``multi``.
        regime: encoders of the compared systems, ``vit`` or ``native``; those of M4oE are the same runs in both.
        extra: overrides of every cell.
        sweeps: ``experts=16,32`` or ``alpha=0,0.1``; with one, only the multi-task runs of the sweep are made.

    Raises:
        ConfigError: an unknown name, a method that a sweep cannot change, or nothing left.
    """
    _check_known(methods, settings, regime)
    points = [point for text in sweeps for point in parse_sweep(text)]
    cells = []
    for subject in subjects_of(datasets):
        for key in dict.fromkeys(methods):
            method = find_method(key)
            if method.refusal(subject.question, regime):
                continue
            own = "vit" if method.model == "m4oe" else regime
            overrides = method.for_tasks(subject.question)
            base = (*extra, *overrides, *((f"model.regime={own}",) if method.model != "m4oe" else ()))
            if points:
                _check_swept(key, sweeps)
                runs = [("multi", (*base, point.override), point.label) for point in points]
            else:
                tasks = subject.columns if "single" in settings and method.single else ()
                runs = [(task, (*base, f"data.tasks=[{task}]"), "") for task in tasks]
                runs += [("multi", base, "")] if "multi" in settings else []
            cells += [
                Cell(
                    subject.name,
                    key,
                    setting,
                    seed,
                    (*changes, f"run.seed={seed}"),
                    sweep,
                    own,
                    subject.columns if setting == "multi" else (setting,),
                )
                for seed in dict.fromkeys(seeds)
                for setting, changes, sweep in runs
            ]
    if not cells:
        why = "; ".join(left_out(datasets, methods, regime)) or "these methods have no run in these settings"
        raise ConfigError(f"no cell: {why}", fix="see --list")
    return cells


def _check_known(methods: Sequence[str], settings: Sequence[str], regime: str) -> None:
    for key in methods:
        find_method(key)
    for kind, option, names, known in (
        ("setting", "--settings", settings, SETTINGS),
        ("regime", "--regime", (regime,), REGIMES),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown {kind} {name!r}{nearest(name, known, ordered=True)}", option)


def _check_swept(key: str, sweeps: Sequence[str]) -> None:
    """Refuses a sweep over an option that the method does not have: all its points would be the same run."""
    method = find_method(key)
    if method.model == "m4oe":
        swept = "model.use_mtoe=false" not in method.overrides
    else:
        swept = _REPLACE in method.overrides or _APPEND in method.overrides
    if not swept or (key == "ours_no_mi" and any(text.startswith("alpha") for text in sweeps)):
        raise ConfigError(f"a sweep changes nothing in {key}", "--methods", "sweep `ours`, or a method with an MToE")
