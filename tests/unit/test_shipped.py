"""Shipped files are found by name from anywhere, and a slip of the name is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from m4oe_ds import config_loader, deepspeed_json, shipped
from m4oe_ds.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_is_found_from_anywhere_even_beside_a_folder_of_that_name(elsewhere: Path) -> None:
    (elsewhere / "demo").mkdir()
    assert shipped.find(shipped.CONFIG, "demo") == shipped.folder("configs") / "demo.yaml"


@pytest.mark.parametrize("text", ["demo.yaml", "configs/demo.yaml", "configs/demo"])
def test_a_path_that_is_not_here_is_not_replaced(text: str) -> None:
    """An edited copy would be ignored, seen from another folder."""
    with pytest.raises(ConfigError, match=f"--config: no such file {text}; write demo for the one that comes with"):
        shipped.find(shipped.CONFIG, text)


def test_names_are_those_of_the_files() -> None:
    assert {"demo", "embed", "paper/embed", "baselines/mirai"} <= set(shipped.names(shipped.CONFIG))
    assert not [name for name in shipped.names(shipped.CONFIG) if name.startswith("cards/")]
    assert {"zero2", "bf16"} <= set(shipped.names(shipped.DS_CONFIG))


@pytest.mark.parametrize("name", shipped.names(shipped.CONFIG))
def test_every_shipped_configuration_is_right(name: str) -> None:
    config_loader.load(name)


@pytest.mark.parametrize("name", shipped.names(shipped.DS_CONFIG))
def test_every_shipped_deepspeed_configuration_is_right(name: str) -> None:
    deepspeed_json.check(deepspeed_json.read(name), name, {}, "")


def test_a_file_of_the_user_comes_first(elsewhere: Path) -> None:
    (elsewhere / "demo").write_text("run: {name: mine}")
    assert shipped.find(shipped.CONFIG, "demo") == Path("demo")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (shipped.CONFIG, "demmo", "did you mean demo?"),
        (shipped.DS_CONFIG, "zero22", "did you mean zero2?"),
        (shipped.CONFIG, "folder", "is a folder"),
        (shipped.CONFIG, "ds.json", "this one to --ds_config"),
        (shipped.DS_CONFIG, "my.yaml", "this one to --config"),
        (shipped.DS_CONFIG, "my.yml", "this one to --config"),
        (shipped.CONFIG, "nothing/like/it.yaml", "no such configuration: nothing/like/it.yaml"),
    ],
)
def test_what_is_not_there_is_explained(elsewhere: Path, kind: shipped.Kind, text: str, said: str) -> None:
    (elsewhere / "folder").mkdir()
    for name in ("ds.json", "my.yaml", "my.yml"):
        (elsewhere / name).write_text("{}")
    with pytest.raises(ConfigError) as caught:
        shipped.find(kind, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{kind.option}: ")


def test_copies_are_whole_and_written_once(elsewhere: Path) -> None:
    copied = shipped.copy(elsewhere / "study")
    assert elsewhere / "study" / "configs" / "demo.yaml" in copied
    assert {path.relative_to(elsewhere / "study").parts[0] for path in copied} == set(shipped.FOLDERS)
    source = shipped.folder("ds_configs") / "zero2.json"
    assert (elsewhere / "study" / "ds_configs" / "zero2.json").read_bytes() == source.read_bytes()
    before = sorted((elsewhere / "study").rglob("*"))
    with pytest.raises(ConfigError, match="is there already"):
        shipped.copy(elsewhere / "study")
    assert sorted((elsewhere / "study").rglob("*")) == before
