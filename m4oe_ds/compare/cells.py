"""The cells of a comparison: one training run each, a method on a data set in one setting with one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m4oe_ds.compare.ablations import parse_sweep
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.registry import MODELS

QUESTIONS: dict[str, tuple[str, ...]] = {  # columns of Table 1, in its order, and the task that is scored
    "embed": ("risk1", "density", "birads"),
    "rsna": ("density", "birads"),
    "vindr": ("density", "birads"),
    "gamma": ("glaucoma", "cup"),
}
SETTINGS = ("single", "multi")
REGIMES = ("vit", "native")


@dataclass(frozen=True)
class Preset:
    """What is run where the command line does not say; sizes are in ``configs/compare/<preset>``."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = SETTINGS


PRESETS = {
    "smoke": Preset(tuple(QUESTIONS), ("all",), (0,)),
    "small": Preset(("embed",), ("table2", "soft_moe", "mirai"), (0, 1, 2, 3, 4), ("multi",)),
    "paper": Preset(tuple(QUESTIONS), ("all",), (0, 1, 2)),
}


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        label: name as printed.
        overrides: overrides of the configuration.
        datasets: where it makes sense.
        single: whether the paper has single-task rows of it.
        paper: whether the paper's Table 1 has a multi-task row of it.
    """

    label: str
    overrides: tuple[str, ...]
    datasets: tuple[str, ...] = tuple(QUESTIONS)
    single: bool = False
    paper: bool = True

    @property
    def model(self) -> str:
        """Registered name."""
        return next((item.split("=")[1] for item in self.overrides if item.startswith("model.name=")), "m4oe")


def _compared(name: str, label: str, *more: str, single: bool = False, paper: bool = True) -> Method:
    datasets = MODELS[name].datasets or tuple(QUESTIONS)
    extra = ("data.contralateral=true",) if MODELS[name].contralateral else ()
    return Method(label, (f"model.name={name}", *extra, *more), datasets, single, paper)


_REPLACE, _APPEND = "model.attach_mtoe=replace", "model.attach_mtoe=append"
_PLAIN = "loss.tasks={glaucoma: {class_weight: none}}"  # evidential and ordinal losses have no class weights
_GAMMA = ("gamma",)

METHODS: dict[str, Method] = {
    "mirai": _compared("mirai", "Mirai", single=True),
    "mirai_mtoe": _compared("mirai", "Mirai + MToE", _REPLACE),
    "mirai_mtoe_append": _compared("mirai", "Mirai + MToE (appended)", _APPEND, paper=False),
    "asymmirai": _compared("asymmirai", "AsymMirai", single=True),
    "asymmirai_mtoe": _compared("asymmirai", "AsymMirai + MToE", _REPLACE),
    "asymmirai_mtoe_append": _compared("asymmirai", "AsymMirai + MToE (appended)", _APPEND, paper=False),
    "eyemost": Method("EyeMoSt", ("model.name=eyemost", _PLAIN), _GAMMA, single=True),
    "eyemost_mtoe": Method("EyeMoSt + MToE", ("model.name=eyemost", _PLAIN, _REPLACE), _GAMMA),
    "eyemost_mtoe_append": Method(
        "EyeMoSt + MToE (appended)", ("model.name=eyemost", _PLAIN, _APPEND), _GAMMA, paper=False
    ),
    "eyemost_plus": Method(
        "EyeMoSt+", ("model.name=eyemost", _PLAIN, "model.options={plus: true}"), _GAMMA, paper=False
    ),
    "eyestar": Method("EyeStar", ("model.name=eyestar", _PLAIN), _GAMMA, single=True),
    "eyestar_mtoe": Method("EyeStar + MToE", ("model.name=eyestar", _PLAIN, _REPLACE), _GAMMA),
    "eyestar_mtoe_append": Method(
        "EyeStar + MToE (appended)", ("model.name=eyestar", _PLAIN, _APPEND), _GAMMA, paper=False
    ),
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
        method: key of METHODS.
        setting: ``multi``, or the one task that is trained.
        seed: seed of the run.
        overrides: overrides of the preset's configuration, the method's included.
        sweep: ``experts=32``, ``alpha=0.1`` or empty.
        regime: encoders of a compared system, ``vit`` (those of our model) or ``native`` (its own).
    """

    dataset: str
    method: str
    setting: str
    seed: int
    overrides: tuple[str, ...]
    sweep: str = ""
    regime: str = "vit"

    @property
    def name(self) -> str:
        """Folder of its run."""
        optional = [self.sweep.replace("=", ""), "native" if self.regime == "native" else ""]
        return "-".join(
            [self.dataset, self.setting, self.method, *(part for part in optional if part), f"seed{self.seed}"]
        )

    @property
    def scored(self) -> tuple[str, ...]:
        """Tasks whose figures enter the tables."""
        return QUESTIONS[self.dataset] if self.setting == "multi" else (self.setting,)


def enumerate_cells(
    datasets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] = SETTINGS,
    regime: str = "vit",
    extra: Sequence[str] = (),
    sweeps: Sequence[str] = (),
) -> list[Cell]:
    """All runs that the tables need.

    Args:
        datasets: names of the data sets.
        methods: names; a method is left out where it makes no sense.
        seeds: one run each.
        settings: ``single`` (one run per column, of the methods with single-task rows), ``multi``.
        regime: encoders of the compared systems, ``vit`` or ``native``; those of M4oE are the same runs in both.
        extra: overrides of every cell.
        sweeps: ``experts=16,32`` or ``alpha=0,0.1``; with one, only the multi-task runs of the sweep are made.

    Raises:
        ConfigError: an unknown name, a method that a sweep cannot change, or nothing left.
    """
    for kind, names, known in (
        ("data set", datasets, tuple(QUESTIONS)),
        ("method", methods, tuple(METHODS)),
        ("setting", settings, SETTINGS),
        ("regime", (regime,), REGIMES),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown {kind} {name!r}", fix=f"known: {', '.join(known)}")
    points = [point for text in sweeps for point in parse_sweep(text)]
    cells = []
    for dataset in dict.fromkeys(datasets):
        for key in dict.fromkeys(methods):
            method = METHODS[key]
            if dataset not in method.datasets:
                continue
            own = "vit" if method.model == "m4oe" else regime
            base = (*extra, *method.overrides, *((f"model.regime={own}",) if method.model != "m4oe" else ()))
            if points:
                _check_swept(key, sweeps)
                runs = [("multi", (*base, point.override), point.label) for point in points]
            else:
                tasks = QUESTIONS[dataset] if "single" in settings and method.single else ()
                runs = [(task, (*base, f"data.tasks=[{task}]"), "") for task in tasks]
                runs += [("multi", base, "")] if "multi" in settings else []
            cells += [
                Cell(dataset, key, setting, seed, (*overrides, f"run.seed={seed}"), sweep, own)
                for seed in dict.fromkeys(seeds)
                for setting, overrides, sweep in runs
            ]
    if not cells:
        raise ConfigError("no cell: these methods have no run on these data sets in these settings", fix="see --list")
    return cells


def _check_swept(key: str, sweeps: Sequence[str]) -> None:
    """Refuses a sweep over an option that the method does not have: all its points would be the same run."""
    method = METHODS[key]
    if method.model == "m4oe":
        swept = "model.use_mtoe=false" not in method.overrides
    else:
        swept = _REPLACE in method.overrides or _APPEND in method.overrides
    if not swept or (key == "ours_no_mi" and any(text.startswith("alpha") for text in sweeps)):
        raise ConfigError(f"a sweep changes nothing in {key}", "--methods", "sweep `ours`, or a method with an MToE")
