"""The plan of ``m4oe figures``: every figure has its trainings and analyses, in an order that works, and is resumed."""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path

import pytest

from m4oe_ds.cli import main
from m4oe_ds.compare.cells import METHODS
from m4oe_ds.compare.published import presets
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.figures import command, index, work
from m4oe_ds.figures.plan import PRODUCTS, Plan, Wanted, figure_presets, files_of
from m4oe_ds.runs.folder import RunFolder


def plan(output: Path, *only: str, preset: str = "smoke") -> Plan:
    return Plan(Wanted(preset, only or command.ALL, output))


def test_the_presets_are_those_of_the_comparison() -> None:
    assert tuple(figure_presets()) == command.PRESETS == tuple(presets())
    assert tuple(PRODUCTS) == command.ALL
    for one in figure_presets().values():
        assert {one.plain, one.late} <= set(METHODS)


@pytest.mark.parametrize("preset", command.PRESETS)
def test_every_command_can_be_read_and_needs_only_what_comes_before(tmp_path: Path, preset: str) -> None:
    whole = plan(tmp_path, preset=preset)
    before: set[str] = set()
    for step in whole.steps:
        assert set(step.needs) <= before
        before.add(step.name)
        work._parsed(step)  # argparse ends the process otherwise
        assert bool(work.trainings(step)) == step.trains
    folders = {path for step in whole.steps for path in work.trainings(step)}
    for step in whole.steps:
        if not step.trains:  # an analysis is of a model that is trained, and compared with trained ones
            named = [Path(text.split("=")[-1]) for text in step.arguments if "/cells/" in text]
            assert named
            assert set(named) <= folders


@pytest.mark.parametrize(
    ("only", "trained", "steps"),
    [
        (("fig5",), 1, ["mixtures", "analyze-ours"]),
        (("fig4",), 2, ["pair", "analyze-late", "analyze-pair"]),
        (("fig7",), 5, ["mixtures", "sweep", "analyze-sweep"]),
        (("table2",), 4, ["tables"]),
        (("fig3",), 6, ["mixtures", *(f"alone-{name}" for name in ("ffdm_cc", "ffdm_mlo", "syn_cc", "syn_mlo")),
                        "analyze-plain", "analyze-ours"]),
    ],
)  # fmt: skip
def test_only_what_is_asked_for_is_made(tmp_path: Path, only: tuple[str, ...], trained: int, steps: list[str]) -> None:
    part = plan(tmp_path, *only)
    assert [step.name for step in part.steps] == steps
    assert len({path for step in part.steps for path in work.trainings(step)}) == trained


def test_a_dry_run_prints_every_command_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures"
    assert main(["figures", "--dry-run", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    for step in plan(output).steps:
        assert f"    {work.command_line(step)}\n" in text
    assert "(97 trainings, 0 done)" in text
    assert "107 trainings in all, 0 done; 5 analyses" in text  # the first two are in the tables too
    assert not output.exists()


def test_what_is_done_is_not_done_again_and_what_rests_on_it_is(tmp_path: Path) -> None:
    part, state = plan(tmp_path, "fig5"), work.State(tmp_path)
    assert work.unfinished(part, state) == part.steps
    for step in part.steps:
        for path in step.makes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        state.finish(step)
    again = work.State(tmp_path)
    assert work.unfinished(part, again) == []
    other = Plan(Wanted("smoke", ("fig5",), tmp_path, analyze=("--limit=5",)))
    assert [step.name for step in work.unfinished(other, again)] == ["analyze-ours"]
    again.begin(part.steps[0])
    assert work.unfinished(part, again) == part.steps
    part.steps[0].makes[0].unlink()
    assert work.unfinished(part, work.State(tmp_path)) == part.steps


def test_a_failed_step_holds_up_only_those_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def trained(options: argparse.Namespace) -> int:
        ran.append(Path(options.output).name)
        return int("pair" in options.output)

    def analysed(options: argparse.Namespace) -> int:
        ran.append(options.only)
        run = RunFolder(Path(options.run))
        run.analysis.parent.mkdir(parents=True, exist_ok=True)
        run.analysis.write_text(json.dumps({"synthetic": True, "skipped": {"contribution": "no <mixture>"}}))
        return 0

    monkeypatch.setattr(work.comparison, "main", trained)
    monkeypatch.setattr(work.analysis, "main", analysed)
    part = plan(tmp_path, "fig4", "fig5")
    outcome = work.do(part, work.State(tmp_path), print)
    assert ran == ["compare", "pair", "contribution"]
    assert set(outcome.problems) == {"pair", "analyze-late", "analyze-pair"}
    lines = index.write(part, outcome)
    assert lines[0].startswith("Figure 4: nothing (analyze-pair: needs")
    assert lines[1] == "Figure 5: nothing (contribution: no <mixture>)"
    page = (tmp_path / "index.html").read_text()
    assert "no &lt;mixture&gt;" in page
    assert "Synthetic data" in page
    assert all(work.command_line(step) in html.unescape(page) for step in part.steps)


def test_unknown_figures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "--only", "fig2", "--output", str(tmp_path / "x")]) == ConfigError.exit_code
    assert "no table or figure fig2" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"st', "[]", "{}", '{"steps": []}', '{"steps": {"a": 1}}'])
def test_a_damaged_state_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures.json").write_text(text)
    assert main(["figures", "--dry-run", "--output", str(tmp_path)]) == DataError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'figures.json'}: is damaged")


def test_a_damaged_analysis_is_one_line(tmp_path: Path) -> None:
    whole = plan(tmp_path, "fig5")
    run = whole.run("compare", "ours")
    run.mkdir(parents=True)
    RunFolder(run).analysis.write_text('{"skipped": {"contri')
    with pytest.raises(DataError, match=r"analysis\.json: is damaged: .*; make it again with `m4oe analyze"):
        index.write(whole, work.Outcome({}))
    RunFolder(run).analysis.write_text('{"skipped": []}')
    assert len(index.write(whole, work.Outcome({}))) == 1


def test_files_are_found_where_the_commands_write_them(tmp_path: Path) -> None:
    part = plan(tmp_path, "table1", "fig5")
    figures = RunFolder(part.run("compare", "ours")).figures
    figures.mkdir(parents=True)
    for name in ("fig5_contribution.png", "fig5_contribution.csv", "fig7_ablation.png"):
        (figures / name).write_text("")
    (tmp_path / "compare" / "table1.md").write_text("| a |")
    (tmp_path / "compare" / "table2.md").write_text("")
    found = files_of(part)
    assert [path.name for path in found["fig5"]] == ["fig5_contribution.csv", "fig5_contribution.png"]
    assert [path.name for path in found["table1"]] == ["table1.md"]
    index.write(part, work.Outcome({}))
    page = (tmp_path / "index.html").read_text()
    assert 'src="compare/cells/embed-multi-ours-seed0/figures/fig5_contribution.png"' in page
    assert "<pre>| a |</pre>" in page
