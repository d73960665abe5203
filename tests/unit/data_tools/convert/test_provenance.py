"""How shards were made: a command that may be shared on the page, paths and times next to the shards only."""

from __future__ import annotations

import csv
import re
import stat
from pathlib import Path

import pytest

from data_tools.convert import ConvertOptions, convert
from data_tools.convert.options import Part, Shares
from data_tools.convert.provenance import command, settings
from m4oe_ds import __version__
from tests.unit.data_tools.card_cases import write_case


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card = write_case(tmp_path_factory.mktemp("made") / "private-place")
    for photo in sorted((card.parent / "photos").rglob("*"))[:1]:
        photo.write_bytes(b"no picture")
    out = card.parent.parent / "shards"
    convert(ConvertOptions(card_path=card, out=out, workers=0, samples_per_shard=5, max_quarantine=0.5))
    return out


def test_a_command_is_shared_without_paths_and_what_changes_nothing() -> None:
    options = ConvertOptions(
        dataset="embed",
        root=Path("/data/secret place"),
        out=Path("/data/x"),
        rows=64,
        workers=3,
        limit=10,
        split=Shares(60, 20, 20),
        part=Part(2, 4),
        exclude_screen_detected=True,
    )
    assert command(options, shared=True) == (
        "m4oe convert --dataset embed --root ARCHIVE --out SHARDS --rows 64 --exclude-screen-detected "
        "--split 60/20/20 --limit 10"
    )
    whole = command(options, shared=False)
    assert "--root '/data/secret place' --out /data/x --workers 3" in whole
    assert whole.endswith("--part 2/4")


def test_settings_tell_what_was_not_given_too() -> None:
    found = settings(ConvertOptions(dataset="embed", root=Path("a"), out=Path("b")))
    assert found["rows"] == "1024"
    assert found["split"] == "70/10/20"
    assert found["risk scope"] == "exam"
    assert not {"out", "root", "workers", "part"} & set(found)


def test_the_page_says_how_it_was_made(shards: Path) -> None:
    page = (shards / "conversion.html").read_text()
    assert "<pre>m4oe convert --card CARD --out SHARDS --samples-per-shard 5 --max-quarantine 0.5</pre>" in page
    assert f"Version {__version__} of m4oe_ds" in page
    assert "private-place" not in page
    assert not re.search(r"\d{4}-\d\d-\d\d", page)
    assert "birads" not in page  # options of archives only


def test_times_and_paths_stay_next_to_the_shards(shards: Path) -> None:
    path = shards.with_name("shards.conversion.csv")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as stream:
        found = {row["what"]: row["value"] for row in csv.DictReader(stream)}
    assert "private-place" in found["command"]
    assert found["version"] == f"m4oe_ds {__version__}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", found["began"])
    assert found["began"] <= found["ended"]
    assert float(found["seconds of this process"]) > 0


def test_reasons_are_counted_and_missing_labels_are_shares(shards: Path) -> None:
    page = (shards / "conversion.html").read_text()
    reasons = page.partition("Images by reason")[2].partition("</table>")[0]
    rows = re.findall(r"<tr><td>([^<]+)</td>((?:<td class=\"n\">\d+</td>)+)</tr>", reasons)
    assert rows, reasons
    for _, cells in rows:
        counts = [int(n) for n in re.findall(r">(\d+)<", cells)]
        assert counts[-1] == sum(counts[:-1]) > 0
    assert re.search(r"<details><summary>\d+ images by key</summary>", page)
    missing = page.partition("Without a label")[2].partition("</table>")[0]
    assert re.search(r'<td class="n">\d+ of \d+ \(\d+\.\d %\)</td>', missing)
