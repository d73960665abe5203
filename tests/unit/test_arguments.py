"""Options of a command line: every mistake is one line that says what to write."""

from __future__ import annotations

import argparse

import pytest

from m4oe_ds.arguments import REFUSED, Parser, add_command, number, whole


@pytest.fixture
def parser() -> Parser:
    top = Parser(prog="tool")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    fetch = add_command(commands, "fetch", "fetch something", "tool fetch x --limit 3", more="Twice if need be.")
    fetch.add_argument("source", metavar="SOURCE", help="what to fetch")
    fetch.add_argument("--limit", type=whole(1, 9), default=1, metavar="N", help="most to fetch")
    fetch.add_argument("--share", type=number(above=0, at_most=1), default=1.0)
    fetch.add_argument("--form", choices=("short", "long"), default="short")
    fetch.add_argument("--zero", type=int, choices=(1, 2), default=1)
    fetch.add_argument("--out", required=True, metavar="DIR", help="where to")
    return top


def refusal(parser: Parser, line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(line)
    assert ended.value.code == REFUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err.strip()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["fecth"], "error: COMMAND: 'fecth' is not known; did you mean fetch? (known: fetch); see `tool --help`"),
        ([], "error: COMMAND is needed: one of fetch; see `tool --help`"),
        (["fetch", "x"], "error: --out is needed (where to); see `tool fetch --help`"),
        (["fetch", "--out", "d"], "error: SOURCE is needed (what to fetch); see `tool fetch --help`"),
        (["fetch", "x", "--out", "d", "--limt", "3"], "error: no option --limt; did you mean --limit? (known: --form,"),
        (["fetch", "x", "y", "--out", "d"], "error: 'y' is one word too many"),
        (["fetch", "x", "--out", "d", "--form", "lnog"], "error: --form: 'lnog' is not known; did you mean long?"),
        (["fetch", "x", "--out", "d", "--zero", "5"], "error: --zero: 5 is not known (known: 1, 2)"),
        (["fetch", "x", "--out", ""], "error: --out: is empty; write a value, or leave it out"),
        (["fetch", " ", "--out", "d"], "error: SOURCE: is empty"),
        (["fetch", "x", "--out"], "error: --out: needs a value; one that begins with - is written --out=-.."),
    ],
)
def test_a_mistake_is_one_line(
    parser: Parser, line: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(parser, line, capsys).startswith(expected)


@pytest.mark.parametrize("text", ["0", "-3", "10", "1.5", "many", "1e3", "99999999999999999999", "nan"])
def test_whole_numbers_have_bounds(parser: Parser, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(parser, ["fetch", "x", "--out", "d", "--limit", text], capsys)
    assert line.startswith(f"error: --limit: write a whole number from 1 to 9, got '{text}'")


@pytest.mark.parametrize("text", ["0", "-0.5", "1.01", "nan", "inf", "1e999", "half"])
def test_numbers_have_bounds(parser: Parser, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(parser, ["fetch", "x", "--out", "d", "--share", text], capsys)
    assert line.startswith(f"error: --share: write a number above 0 to 1, got '{text}'")


def test_what_is_right_is_read(parser: Parser) -> None:
    found = parser.parse_args(["fetch", "x", "--out", "d", "--limit", "9", "--share", "1", "--form", "long"])
    assert (found.source, found.out, found.limit, found.share, found.form) == ("x", "d", 9, 1.0, "long")
    assert whole()("0") == 0
    assert number(at_least=0)("0") == 0.0


def test_the_help_of_a_command_has_a_description_and_an_example(
    parser: Parser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["fetch", "--help"])
    text = capsys.readouterr().out
    assert "Fetch something.\nTwice if need be." in text
    assert "example:\n  tool fetch x --limit 3" in text


def every_parser(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """All parsers without sub-commands of their own, by the words that call them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {name: one for child in action.choices.values() for name, one in every_parser(child).items()}
    return {parser.prog: parser}


def test_every_command_has_an_example_and_every_option_a_sentence_with_its_unit() -> None:
    """A number says what it counts by its letter: N, S (seconds), H (hours), GB, SHARE, STEPS."""
    from m4oe_ds.cli import parser as command

    found = every_parser(command())
    assert {"m4oe train", "m4oe diff", "m4oe card check", "m4oe card new", "m4oe scale run"} <= set(found)
    for name, one in found.items():
        assert "example" in (one.epilog or ""), name
        assert one.description, name
        for action in one._actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
                continue
            assert action.help, (name, action.dest)
            if callable(action.type) and action.type.__name__ == "read" and action.choices is None:
                assert action.metavar in ("N", "S", "H", "GB", "SHARE", "STEPS"), (name, action.dest)


def test_no_number_of_a_command_is_without_bounds() -> None:
    from m4oe_ds.cli import parser as command

    free = [
        (name, action.dest)
        for name, one in every_parser(command()).items()
        for action in one._actions
        if action.type in (int, float) and action.choices is None
    ]
    assert free == []
