"""Files of an earlier command: damage of any kind is one line with the file and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds.errors import DataError
from m4oe_ds.stored import read_arrays, read_json, read_log, within

DAMAGED = {
    "empty": b"",
    "cut off": b'{"a": [1,',
    "list": b"[1]",
    "null": b"null",
    "number": b"3",
    "latin": "é".encode("latin-1"),
    "bytes": bytes(range(256)),
    "deep": b"[" * 100_000,
    "no number": b'{"a": NaN}',
    "another": b'{"b": 1}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DataError) as caught:
        read_json(path, "copy it again", ("a",))
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; copy it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_arrays_are_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DataError) as caught:
        read_arrays(path, "make it again", ("a",))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_arrays_cut_off_or_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(1000))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(path, "make it again")
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(path, "make it again")
    np.save(tmp_path / "x.npy", np.arange(3))
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(tmp_path / "x.npy", "make it again")


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, 2]}))
    assert read_json(tmp_path / "x.json", "", ("a",)) == {"a": [1, 2]}
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    assert read_arrays(tmp_path / "x.npz", "", ("a",))["a"].tolist() == [0, 1, 2]
    for read in (read_json, read_arrays):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "absent", "make it")
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path, "make it")


def test_only_the_unfinished_last_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    one, two = {"step": 1, "loss": 2.5}, {"step": 2, "loss": float("inf")}
    whole = json.dumps(one) + "\n" + json.dumps(two)
    for text in (whole, whole + "\n", whole + '\n{"step": 3, "lo'):
        path.write_text(text)
        assert read_log(path, "") == [one, two]
    path.write_text("")
    assert read_log(path, "") == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n', 2),
        ('{"step": 1}\n{"step": 2, "lo\n', 2),  # its end was written
        ('{"step": 1}\n\n{"step": 3}\n', 2),
        ('{"loss": 1}\n', 1),
        ('{"step": "1"}\n', 1),
        ("[1]\n", 1),
        ("destroyed", 1),
        ("\x00\x01\x02", 1),
        ("[" * 100_000 + "\n", 1),
    ],
)
def test_a_damaged_line_of_a_log_is_named(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"log\.jsonl: line {line} is damaged: .*; copy it again"):
        read_log(path, "copy it again")


def test_content_that_does_not_fit_together_is_damage_with_its_cause() -> None:
    with (
        pytest.raises(
            DataError, match=r"x\.json: is damaged, or of another version \(KeyError: 'n'\); make it"
        ) as caught,
        within("x.json", "make it"),
    ):
        {}["n"]
    assert isinstance(caught.value.__cause__, KeyError)
