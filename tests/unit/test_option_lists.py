"""Comma lists of the command lines: what they become, and what the message says when they cannot be read."""

from __future__ import annotations

import pytest

from m4oe_ds.errors import ConfigError
from m4oe_ds.option_lists import check_known, comma_list


def message(text: str, kind: type, *choices: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        comma_list(text, "--these", kind, *choices, **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("text", ["1,2,30", " 1 , 2,30 ", "1,,2,30,"])
def test_blanks_and_empty_items_do_not_count(text: str) -> None:
    assert comma_list(text, "--seeds", int) == [1, 2, 30]
    assert comma_list(text, "--names", str) == ["1", "2", "30"]
    assert comma_list(text, "--alpha", float) == [1.0, 2.0, 30.0]


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_no_items_are_an_empty_list_unless_one_is_required(text: str) -> None:
    assert comma_list(text, "--only", str) == []
    assert message(text, str, required=True) == (f"--these: cannot read {text!r}; write names with commas between them")


def test_order_and_repetitions_stay() -> None:
    assert comma_list("b,a,b", "--only", str, ("a", "b", "c")) == ["b", "a", "b"]


def test_any_function_that_refuses_by_valueerror_converts() -> None:
    assert comma_list("a100+h100,h100", "--gpu", lambda part: part.split("+")) == [["a100", "h100"], ["h100"]]


@pytest.mark.parametrize(("text", "kind"), [("1,x", int), ("1.5", int), ("1,zero", float)])
def test_what_is_no_number_is_named_with_its_option(text: str, kind: type) -> None:
    assert message(text, kind).startswith(f"--these: cannot read {text!r}; write ")


def test_an_unknown_item_is_named_with_the_choices() -> None:
    assert message("a,x,y", str, ("a", "b")) == "--these: no x, y; choose among a, b"
    assert message("x", str, {"a": 1, "b": 2}, noun="analysis") == "--these: no analysis x; choose among a, b"


def test_items_that_are_no_text_are_checked_the_same_way() -> None:
    check_known((), "--these", ("a", "b"))
    check_known(("b",), "--these", {"a": 1, "b": 2})
    with pytest.raises(ConfigError) as caught:
        check_known(("x", "a", "y"), "--these", ("a", "b"), noun="analysis")
    assert str(caught.value) == "--these: no analysis x, y; choose among a, b"


@pytest.mark.parametrize("text", ["0", "4,0", "-3,1"])
def test_an_item_below_the_least_is_refused(text: str) -> None:
    assert message(text, int, least=1) == f"--these: cannot read {text!r}; write whole numbers from 1, e.g. 1,2,4"
    assert comma_list("1,2", "--these", int, least=1) == [1, 2]


def test_nan_is_below_any_least() -> None:
    assert "cannot read 'nan'" in message("nan", float, least=0.0)


def test_advice_can_be_given() -> None:
    assert message("x", int, advice="write 8 or 16") == "--these: cannot read 'x'; write 8 or 16"


def test_a_repetition_is_refused_where_an_item_counts_once() -> None:
    with pytest.raises(ConfigError, match=r"--only: has b twice; leave one out"):
        comma_list("a,b,b", "--only", str, once=True)
    assert comma_list("a,b", "--only", str, once=True) == ["a", "b"]
