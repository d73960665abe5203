"""The cells of a comparison: one training run each, a method on a data set in one setting with one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m4oe_ds.data.schema import DATASETS
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.registry import MODELS

QUESTIONS: dict[str, tuple[str, ...]] = {  # columns of Table 1, in its order, and the task that is scored
    "embed": ("risk1", "density", "birads"),
    "rsna": ("density", "birads"),
    "vindr": ("density", "birads"),
    "gamma": ("glaucoma", "cup"),
}
MAMMOGRAPHY = ("embed", "rsna", "vindr")
PRESETS = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        label: as printed. overrides: of the configuration. datasets: where it makes sense. single: it has single-task rows
            in the paper. paper: it has multi-task rows in the paper.
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
        dataset: data set. method: key of METHODS. setting: ``multi``, or the one task that is trained. seed: of the run.
        overrides: of the preset's configuration, the method's included. sweep: ``experts=32``, ``alpha=0.1`` or empty.
    """

    dataset: str
    method: str
    setting: str
    seed: int
    overrides: tuple[str, ...]
    sweep: str = ""

    @property
    def name(self) -> str:
        """Folder of its run."""
        parts = [self.dataset, self.setting, self.method, *([self.sweep.replace("=", "")] if self.sweep else [])]
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def scored(self) -> tuple[str, ...]:
        """Tasks whose figures enter the tables."""
        return QUESTIONS[self.dataset] if self.setting == "multi" else (self.setting,)


def enumerate_cells(
    datasets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] = ("single", "multi"),
    regime: str = "vit",
    extra: Sequence[str] = (),
    sweeps: Sequence[str] = (),
) -> list[Cell]:
    """All runs that the tables need.

    Args:
        datasets, methods: names; a method is left out where it makes no sense. seeds: one run each.
        settings: ``single`` (one run per column, of the methods with single-task rows), ``multi``.
        regime: encoders of the compared systems, ``vit`` or ``native``. extra: overrides of every cell.
        sweeps: ``experts=16,32`` or ``alpha=0,0.1``; with one, only the multi-task runs of the sweep are made.

    Raises:
        ConfigError: an unknown name.
    """
    for kind, names, known in (
        ("data set", datasets, QUESTIONS),
        ("method", methods, METHODS),
        ("setting", settings, ("single", "multi")),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown {kind} {name!r}", fix=f"known: {', '.join(known)}")
    values = [value for text in sweeps for value in parse_sweep(text)]
    cells = []
    for dataset in datasets:
        for key in methods:
            method = METHODS[key]
            if dataset not in method.datasets:
                continue
            native = (f"model.regime={regime}",) if method.model != "m4oe" else ()
            base = (*extra, *method.overrides, *native)
            for seed in seeds:
                if values:
                    cells += [
                        Cell(dataset, key, "multi", seed, (*base, override, f"run.seed={seed}"), label)
                        for label, override in values
                    ]
                    continue
                if "single" in settings and method.single:
                    cells += [
                        Cell(dataset, key, task, seed, (*base, f"data.tasks=[{task}]", f"run.seed={seed}"))
                        for task in QUESTIONS[dataset]
                        if _possible(method, task)
                    ]
                if "multi" in settings:
                    cells.append(Cell(dataset, key, "multi", seed, (*base, f"run.seed={seed}")))
    return cells


def _possible(method: Method, task: str) -> bool:
    """AsymMirai and Mirai have no masks, and are not asked for any."""
    dense = any(spec.kind == "segmentation" and spec.name == task for data in DATASETS.values() for spec in data.tasks)
    return not dense or method.model not in ("mirai", "asymmirai")


def parse_sweep(text: str) -> list[tuple[str, str]]:
    """``experts=16,32`` as [("experts=16", "model.mtoe.num_experts=16"), ..]; alpha likewise.

    Raises:
        ConfigError: another name, or no numbers.
    """
    name, _, values = text.partition("=")
    keys = {"experts": "model.mtoe.num_experts", "alpha": "loss.alpha"}
    found = [value.strip() for value in values.split(",") if value.strip()]
    if name not in keys or not found:
        raise ConfigError(f"cannot read {text!r}", "--sweep", "write experts=16,32,64,128 or alpha=0,0.1,0.2")
    return [(f"{name}={value}", f"{keys[name]}={value}") for value in found]
