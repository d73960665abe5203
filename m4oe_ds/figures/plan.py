"""The steps that make the paper's tables and figures: which commands, in which order, for which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from m4oe_ds.compare.published import presets, published
from m4oe_ds.data.cards import find_card
from m4oe_ds.runs.folder import RunFolder

PRODUCTS = {  # by the name that --only takes: heading, and what it shows
    "table1": ("Table 1", "every system on every data set, single tasks and all tasks together, paired with M4oE"),
    "table2": ("Table 2", "M4oE without MToE, without MSoE and without mutual information"),
    "fig3": ("Figure 3", "modality competition: encoders trained alone and together; use of modalities by the experts"),
    "fig4": ("Figure 4", "synergy of every pair of modalities, of M4oE and of late fusion, trained on two tasks"),
    "fig5": ("Figure 5", "contribution of each modality, for two samples and the whole split"),
    "fig6": ("Figure 6", "conflicts between the gradients of two tasks; which expert serves which task"),
    "fig7": ("Figure 7", "results against the number of experts and the weight of mutual information"),
}


@dataclass(frozen=True)
class Preset:
    """What the figures need beyond the tables.

    Attributes:
        ds_config: shipped DeepSpeed JSON of the trainings.
        pair: tasks of the models of Fig. 4 and 6a.
        plain: method without MToE of Fig. 3b and 6b.
        late: late fusion of Fig. 4 and 6a.
        conflict: steps between measurements of the gradients.
        sweep: ``--sweep`` options of Fig. 7.
    """

    ds_config: str
    pair: tuple[str, ...]
    plain: str
    late: str
    conflict: int
    sweep: tuple[str, ...]


@cache
def figure_presets() -> dict[str, Preset]:
    """Presets by name."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text("utf-8"))
    found = {}
    for name, entry in content.items():
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in entry.items()}
        found[name] = Preset(**values)
    return found


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        preset: smoke, small or paper.
        only: names of PRODUCTS.
        output: folder of all of it.
        overrides: ``--set`` options of every training.
        compare: further options of every ``m4oe compare``, such as ``("--workers", "2")``.
        analyze: further options of every ``m4oe analyze``.
    """

    preset: str
    only: tuple[str, ...]
    output: Path
    overrides: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    analyze: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: what it is called in the plan, the state and the logs.
        what: a sentence on what it does.
        arguments: of ``m4oe``.
        needs: names of earlier steps.
        makes: files that are there when it is done.
    """

    name: str
    what: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    makes: tuple[Path, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether it trains models."""
        return self.arguments[0] == "compare"


class Plan:
    """The steps of what is asked for, in their order.

    Args:
        wanted: what is asked for.

    Attributes:
        wanted: the same.
        dataset: data set of the figures.
        steps: the steps.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.dataset = published().ablation
        self._preset = figure_presets()[wanted.preset]
        self._seed = presets()[wanted.preset].seeds[0]
        self.steps: list[Step] = []
        only = set(wanted.only)
        self._figures(only)
        if only & {"table1", "table2"}:
            self._tables(only)

    def _figures(self, only: set[str]) -> None:
        if only & {"fig3", "fig5", "fig6", "fig7"}:
            self._mixtures(only)
        if "fig3" in only:
            for name in find_card(self.dataset).modalities:
                what = f"M4oE on {name} alone, for Fig. 3a"
                self._own(f"alone-{name}", what, ["ours"], [f"data.modalities=[{name}]"])
        if only & {"fig4", "fig6"}:
            tasks = ", ".join(self._preset.pair)
            more = [f"data.tasks=[{tasks}]", f"run.conflict_every_steps={self._preset.conflict}"]
            what = f"M4oE and late fusion on {tasks} alone, for Fig. 4 and 6a"
            self._own("pair", what, ["ours", self._preset.late], more)
        if "fig7" in only:
            sweeps = [item for text in self._preset.sweep for item in ("--sweep", text)]
            arguments = [*self._sized("--datasets", self.dataset), *sweeps, *self._overrides()]
            self._train("sweep", "M4oE with other numbers of experts and other alpha, for Fig. 7", arguments)
        self._analyses(only)

    def _mixtures(self, only: set[str]) -> None:
        methods = ["ours", *([self._preset.plain] if only & {"fig3", "fig6"} else [])]
        arguments = self._sized("--datasets", self.dataset, "--methods", ",".join(methods), *self._once())
        what = "M4oE" if len(methods) == 1 else "M4oE and a plain Soft-MoE, for Fig. 3 to 7"
        makes = tuple(self.run("compare", method) for method in methods)
        self._train("mixtures", what, [*arguments, *self._overrides()], "compare", makes)

    def _tables(self, only: set[str]) -> None:
        if "table1" in only:
            arguments, what = self._sized(), "every system on every data set, for Table 1 and 2"
        else:
            arguments = self._sized("--datasets", self.dataset, "--methods", "table2", "--settings", "multi")
            what = "M4oE and its ablations, for Table 2"
        folder = self.wanted.output / "compare"
        makes = tuple(folder / f"{name}.md" for name in ("table1", "table2") if name in only)
        needs = tuple(step.name for step in self.steps if step.name == "mixtures")  # which writes tables of its own
        self._train("tables", what, [*arguments, *self._overrides()], "compare", makes, needs)

    def _analyses(self, only: set[str]) -> None:
        ours, plain = self.run("compare", "ours"), self.run("compare", self._preset.plain)
        if only & {"fig3", "fig6"}:
            self._analyze("plain", "the plain Soft-MoE, to be drawn next to M4oE", plain, ["utilisation", "experts"])
        own = {"fig3": ["competition", "utilisation"], "fig5": ["contribution"], "fig6": ["experts"]}
        sections = [section for name, several in own.items() if name in only for section in several]
        if sections:
            alone = [step.name for step in self.steps if step.name.startswith("alone-")]
            more = [f"--unimodal={name[6:]}={self.run(name, 'ours')}" for name in alone]
            more += [f"--baseline={plain}"] if only & {"fig3", "fig6"} else []
            needs = [*alone, *(["analyze-plain"] if only & {"fig3", "fig6"} else [])]
            figures = ", ".join(name.replace("fig", "") for name in own if name in only)
            self._analyze("ours", f"M4oE, for Fig. {figures}", ours, sections, more, needs)
        if only & {"fig4", "fig6"}:
            sections = [*(["synergy"] if "fig4" in only else []), *(["conflict"] if "fig6" in only else [])]
            late, pair = self.run("pair", self._preset.late), self.run("pair", "ours")
            self._analyze("late", "late fusion, to be drawn next to M4oE", late, sections, needs=["pair"])
            what = "M4oE trained on two tasks, for Fig. 4 and 6a"
            self._analyze("pair", what, pair, sections, [f"--baseline={late}"], ["analyze-late", "pair"])
        if "fig7" in only:
            more = [f"--sweep={self.wanted.output / 'sweep' / 'sweep.csv'}"]
            self._analyze("sweep", "the sweep, for Fig. 7", ours, ["sweep"], more, ["sweep"])

    def run(self, folder: str, method: str) -> Path:
        """Run folder of a multi-task training of the figures."""
        name = f"{self.dataset}-multi-{method}-seed{self._seed}"
        return self.wanted.output / folder / "cells" / name

    def _once(self) -> tuple[str, ...]:
        return ("--settings", "multi", "--seeds", str(self._seed))

    def _sized(self, *more: str) -> list[str]:
        return ["--preset", self.wanted.preset, *more]

    def _overrides(self, more: Sequence[str] = ()) -> list[str]:
        return [f"--set={text}" for text in (*self.wanted.overrides, *more)]

    def _own(self, name: str, what: str, methods: Sequence[str], more: Sequence[str]) -> None:
        """Trains with other modalities or tasks than the preset's."""
        config = f"compare/{self.wanted.preset}/{self.dataset}"  # a shipped one
        arguments = ["--config", config, "--methods", ",".join(methods), *self._once(), *self._overrides(more)]
        makes = tuple(self.run(name, method) for method in methods)
        self._train(name, what, arguments, name, makes)

    def _train(
        self,
        name: str,
        what: str,
        arguments: Sequence[str],
        folder: str = "",
        makes: tuple[Path, ...] = (),
        needs: tuple[str, ...] = (),
    ) -> None:
        output = self.wanted.output / (folder or name)
        common = (f"--ds_config={self._preset.ds_config}", f"--output={output}", *self.wanted.compare)
        made = tuple(RunFolder(path).metrics if path.parent.name == "cells" else path for path in makes)
        files = made or (output / "sweep.csv",)
        self.steps.append(Step(name, what, ("compare", *arguments, *common), needs, files))

    def _analyze(
        self,
        name: str,
        what: str,
        run: Path,
        sections: Sequence[str],
        more: Sequence[str] = (),
        needs: Sequence[str] = (),
    ) -> None:
        arguments = ("analyze", str(run), "--only", ",".join(sections), *more, *self.wanted.analyze)
        trained = ("mixtures",) if run.parent.parent.name == "compare" else ()
        made = (RunFolder(run).analysis,)
        self.steps.append(Step(f"analyze-{name}", what, arguments, (*trained, *needs), made))


def files_of(plan: Plan) -> Mapping[str, list[Path]]:
    """Files of every product that is asked for, found where the steps have written them."""
    compare, patterns = (
        plan.wanted.output / "compare",
        {
            "fig3": [("compare", "fig3a_*"), ("compare", "fig3bc_*")],
            "fig4": [("pair", "fig4_*")],
            "fig5": [("compare", "fig5_*")],
            "fig6": [("pair", "fig6a_*"), ("compare", "fig6b_*")],
            "fig7": [("compare", "fig7_*")],
        },
    )
    found: dict[str, list[Path]] = {}
    for name in plan.wanted.only:
        if name in patterns:
            folders = [(RunFolder(plan.run(folder, "ours")).figures, pattern) for folder, pattern in patterns[name]]
            found[name] = [path for folder, pattern in folders for path in sorted(folder.glob(pattern))]
        else:
            found[name] = sorted(compare.glob(f"{name}.*")) + sorted(compare.glob(f"{name}_auroc.*"))
    return found
