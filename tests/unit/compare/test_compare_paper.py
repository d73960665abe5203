"""The paper's numbers next to ours: complete, consistent with what its text derives from them, labelled as not ours."""

from __future__ import annotations

import pytest

from m4oe_ds.compare import tables
from m4oe_ds.compare.ablations import parse_sweep
from m4oe_ds.compare.cells import ABLATIONS, METHODS, Subject, enumerate_cells
from m4oe_ds.compare.published import published
from m4oe_ds.compare.results import Figure
from m4oe_ds.data.cards import find_card

QUESTIONS, PAPER = published().columns, published().figures
METRIC = {"cup": "dice"}
MAMMOGRAPHY = ("embed", "rsna", "vindr")


def row(setting: str, method: str, datasets: tuple[str, ...]) -> list[float]:
    return [value for dataset in datasets for value in PAPER[setting, method][dataset]]


def gains(first: list[float], second: list[float]) -> list[float]:
    return [round(a - b, 1) for a, b in zip(first, second, strict=True)]


# differences between rows, worked out from the published table apart from this package
@pytest.mark.parametrize(
    ("method", "datasets", "expected"),
    [
        ("mirai", MAMMOGRAPHY, [1.5, 0.1, 1.1, 0.7, 0.6, 0.5, 0.5]),
        ("asymmirai", MAMMOGRAPHY, [1.9, 0.6, 1.2, 0.3, 0.5, 2.1, 2.0]),
        ("eyemost", ("gamma",), [0.7, 1.9]),
        ("eyestar", ("gamma",), [1.6, 2.8]),
    ],
)
def test_what_an_mtoe_adds(method: str, datasets: tuple[str, ...], expected: list[float]) -> None:
    assert gains(row("multi", f"{method}_mtoe", datasets), row("multi", method, datasets)) == expected


@pytest.mark.parametrize(
    ("method", "datasets", "expected"),
    [
        ("ours", tuple(QUESTIONS), [0.4, 0.5, 0.9, 0.3, 2.7, 1.9, 4.3, 2.8, 0.8]),
        ("mirai", MAMMOGRAPHY, [-0.9, 0.9, -0.2, -0.2, 0.2, -0.9, -0.2]),
        ("asymmirai", MAMMOGRAPHY, [1.0, 2.3, 0.2, -0.2, 0.6, 0.2, -0.2]),
        ("eyemost", ("gamma",), [0.5, -1.2]),
        ("eyestar", ("gamma",), [0.5, -1.8]),
    ],
)
def test_what_several_tasks_add(method: str, datasets: tuple[str, ...], expected: list[float]) -> None:
    assert gains(row("multi", method, datasets), row("single", method, datasets)) == expected


# sums over the published rows and columns, in the order of the paper: a digit in a wrong place shows in both
ROWS = {
    ("single", MAMMOGRAPHY): [529.8, 504.1, 527.4, 540.0],
    ("multi", MAMMOGRAPHY): [528.5, 533.5, 508.0, 516.6, 544.1, 538.4, 541.5, 545.3, 535.1, 551.0],
    ("single", ("gamma",)): [173.8, 171.3, 172.4, 176.5],
    ("multi", ("gamma",)): [173.1, 175.7, 170.0, 174.4, 175.7, 174.0, 176.0, 176.4, 175.5, 180.1],
}
COLUMNS = {
    ("single", MAMMOGRAPHY): [331.7, 328.2, 288.0, 304.7, 248.6, 338.3, 261.8],
    ("multi", MAMMOGRAPHY): [837.4, 832.5, 727.9, 763.3, 642.3, 861.2, 677.4],
    ("single", ("gamma",)): [345.2, 348.8],
    ("multi", ("gamma",)): [879.8, 871.1],
}


@pytest.mark.parametrize(("setting", "datasets"), ROWS)
def test_sums_of_the_published_table(setting: str, datasets: tuple[str, ...]) -> None:
    methods = [m for (s, m), values in PAPER.items() if s == setting and datasets[-1] in values]
    table = [row(setting, method, datasets) for method in methods]
    assert [round(sum(values), 1) for values in table] == ROWS[setting, datasets]
    assert [round(sum(values), 1) for values in zip(*table, strict=True)] == COLUMNS[setting, datasets]


def test_ours_is_best_in_its_setting_and_the_second_best_are_those_marked() -> None:
    second = ["mmodn"] * 6 + ["evif", "mmodn", None]  # Dice: not marked
    for setting in ("single", "multi"):
        columns = [(dataset, k) for dataset in QUESTIONS for k in range(len(QUESTIONS[dataset]))]
        for (dataset, k), runner_up in zip(columns, second, strict=True):
            values = {m: found[dataset][k] for (s, m), found in PAPER.items() if s == setting and dataset in found}
            best, *others = sorted(values, key=values.__getitem__, reverse=True)
            assert best == "ours"
            # the table's own rows: with the ablations of Table 2 left out
            table = [name for name in others if METHODS[name].paper]
            if setting == "multi" and runner_up:
                assert table[0] == runner_up


def test_table_2_has_the_papers_rows_and_columns() -> None:
    figures = [
        Figure("embed", "multi", method, task, "", "accuracy", (0,), (0.5,), 0.5, None, 0.4, 9)
        for method in METHODS
        for task in QUESTIONS["embed"]
    ]
    header, *rows = tables.table2(figures, "embed")
    assert header == [
        "MToE",
        "MSoE",
        "MI",
        *(part for task in QUESTIONS["embed"] for part in (task, "paper, real data")),
    ]
    assert [tuple(r[:3]) for r in rows] == [
        ("-", "yes", "-"),
        ("yes", "-", "yes"),
        ("yes", "yes", "-"),
        ("yes", "yes", "yes"),
    ]
    assert [[r[4], r[6], r[8]] for r in rows] == [
        ["84.0", "82.8", "73.1"],
        ["85.1", "83.5", "73.8"],
        ["85.2", "83.7", "73.5"],
        ["85.9", "84.1", "75.1"],
    ]


def test_table_1_has_the_papers_rows_in_its_order() -> None:
    figures = [
        Figure(
            dataset, setting, method, task, "", "dice" if task == "cup" else "accuracy", (0,), (0.5,), 0.5, None, 0.4, 9
        )
        for dataset, tasks in QUESTIONS.items()
        for task in tasks
        for method, entry in METHODS.items()
        if not entry.refusal(Subject.of(find_card(dataset)).question)
        for setting in ("multi", *((task,) if entry.single else ()))
    ]
    header, majority, *rows = tables.table1(figures)
    assert [name for name in header[2:] if name != "paper, real data"] == [
        "embed risk1",
        "embed density",
        "embed birads",
        "rsna density",
        "rsna birads",
        "vindr density",
        "vindr birads",
        "gamma glaucoma",
        "gamma cup (Dice)",
    ]
    assert majority[1] == "majority class"
    assert [r[1] for r in rows if r[0] == "single-task"] == [
        "Mirai",
        "AsymMirai",
        "EyeMoSt",
        "EyeStar",
        "Ours w/o MSoE",
        "Ours",
    ]
    published = [METHODS[name].label for (setting, name) in PAPER if setting == "multi" and METHODS[name].paper]
    assert [r[1] for r in rows if r[0] == "multi-task" and r[1] in published] == [
        "Mirai",
        "Mirai + MToE",
        "AsymMirai",
        "AsymMirai + MToE",
        "EyeMoSt",
        "EyeMoSt + MToE",
        "EyeStar",
        "EyeStar + MToE",
        "EVIF",
        "FULLER",
        "AIDE",
        "MModN",
        "Ours w/o MToE",
        "Ours",
    ]
    # the paper's numbers stand in columns of their own and nowhere else
    for r in rows:
        for name, text in zip(header, r, strict=True):
            assert ("50.0" in text) == (name not in ("setting", "method", "paper, real data")) or text == "-"


def test_the_sweeps_of_figure_7_are_one_option_each() -> None:
    experts, alphas = parse_sweep("experts=16,32,64,128"), parse_sweep("alpha=0,0.01,0.05,0.1,0.2,0.5")
    assert [point.override for point in experts] == [f"model.mtoe.num_experts={n}" for n in (16, 32, 64, 128)]
    assert [point.override for point in alphas] == [
        f"loss.alpha={a}" for a in ("0", "0.01", "0.05", "0.1", "0.2", "0.5")
    ]
    cells = enumerate_cells(
        ["embed"], ["ours"], [0, 1], sweeps=["experts=16,32,64,128", "alpha=0,0.01,0.05,0.1,0.2,0.5"]
    )
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 10
    assert ABLATIONS["ours_no_mi"] == (True, True, False)
