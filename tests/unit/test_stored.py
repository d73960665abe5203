"""Files of an earlier command: damage of any kind is one line with the file and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds.errors import DataError
from m4oe_ds.stored import read_arrays, read_json

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
