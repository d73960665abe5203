"""Searches every byte of a folder of shards for what identifies a person: text patterns, DICOM headers, tar metadata.

JSON is read value by value, so that sizes and byte positions may look like anything; everything else is searched as
bytes, but for pixel members that are byte for byte what the codec gives to their pixels. A PNG with other than its
three critical chunks or a pixel member with a foreign header is a finding. The lines never quote what was found.
"""

from __future__ import annotations

import base64
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.archives import values
from data_tools.deidentify import VENDORS, find_identifiers
from m4oe_ds.data.cards import Card, Subgroup, card_from, find_card
from m4oe_ds.data.cards.bands import possible_groups
from m4oe_ds.data.schema import GEOMETRY_FIELDS, KEY_PATTERN, META_FIELDS, SPLITS
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.progress import track

ALL_DIGIT_SHARE = 0.02  # of true hashes, (10/16)^16 = 0.05 % hold digits only; identifiers always do
_COUNTED_KEYS = frozenset({"bytes", "offsets"})  # file sizes and positions may look like anything
MAX_SIDE = 99_999  # longest side of an image
_HASH, _SIDE = re.compile("[0-9a-f]{16}"), re.compile("[a-z]")
_PSEUDONYM = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*?-([0-9a-f]{16})(?:-[a-z])?|([0-9a-f]{16})(?:-[a-z])?|[0-9a-f]{64}")
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_B2_MAGIC = b"M4B2"
_EMBEDDED_PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
# Little-endian tag and VR of identifying attributes, as they stand in any explicit-VR DICOM header: name, id, birth
# date, sex, age, accession, dates and times, institution, physicians, station, study and series description,
# the three UIDs
_DICOM_TAGS = tuple(
    group.to_bytes(2, "little") + element.to_bytes(2, "little") + vr
    for group, element, vr in (
        (0x0010, 0x0010, b"PN"),
        (0x0010, 0x0020, b"LO"),
        (0x0010, 0x0030, b"DA"),
        (0x0010, 0x0040, b"CS"),
        (0x0010, 0x1010, b"AS"),
        (0x0008, 0x0050, b"SH"),
        (0x0008, 0x0020, b"DA"),
        (0x0008, 0x0021, b"DA"),
        (0x0008, 0x0022, b"DA"),
        (0x0008, 0x0023, b"DA"),
        (0x0008, 0x0030, b"TM"),
        (0x0008, 0x0080, b"LO"),
        (0x0008, 0x0090, b"PN"),
        (0x0008, 0x1010, b"SH"),
        (0x0008, 0x1030, b"LO"),
        (0x0008, 0x103E, b"LO"),
        (0x0008, 0x1070, b"PN"),
        (0x0008, 0x0018, b"UI"),
        (0x0020, 0x000D, b"UI"),
        (0x0020, 0x000E, b"UI"),
        (0x0018, 0x1000, b"LO"),
    )
)


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Every key, text and whole number in a JSON value, but sizes, byte positions and where a card takes data from.

    The source of a card names columns, never what stands in them; a column may be called as a DICOM attribute is.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            if (key, name) == ("card", "source"):
                continue
            yield str(name)
            yield from _texts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) or (
        isinstance(value, int) and not isinstance(value, bool) and key not in _COUNTED_KEYS
    ):
        yield str(value)


class _Scan:
    """Collects findings, each kind once per place, and the pseudonyms seen."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.pseudonyms: set[str] = set()

    def report(self, place: str, what: str) -> None:
        line = f"{place}: {what}"
        if line not in self.problems:
            self.problems.append(line)

    def text(self, place: str, text: str) -> None:
        match = _PSEUDONYM.fullmatch(text)
        if match:  # a keyed hash may by chance look like a number; judged together at the end
            self.pseudonyms.update(part for part in match.groups() if part)
            return
        for kind in find_identifiers(text):
            self.report(place, f"holds {kind}; do not share this file, convert the archive again")

    def json(self, place: str, data: bytes | str) -> Any:
        try:
            value = json.loads(data)
        except ValueError:
            self.report(place, "is not valid JSON; convert the archive again")
            return None
        for text in _texts(value):
            self.text(place, text)
        return value

    def data(self, place: str, data: bytes) -> None:
        """Bytes that are not text: searched as they are."""
        if b"DICM" in data[128:132] or any(tag in data for tag in _DICOM_TAGS):
            self.report(place, "holds a DICOM header; do not share this file, convert the archive again")
        self.text(place, data.decode("latin-1"))

    def finish(self) -> list[str]:
        digits = sum(name.isdigit() for name in self.pseudonyms)
        if digits > 1 and digits > ALL_DIGIT_SHARE * len(self.pseudonyms):
            self.report("pseudonyms", f"{digits} of {len(self.pseudonyms)} are plain numbers, as identifiers are")
        return self.problems


def _whole(value: Any, top: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= top


def _measures(value: Any) -> bool:
    """Whether a value is one of a geometry: true or false, nothing, or sizes and places in pixels or mm."""
    numbers = value if isinstance(value, list) else [value]
    return all(n is None or (isinstance(n, int | float) and abs(n) <= MAX_SIDE) for n in numbers)


def _group_allowed(subgroup: Subgroup, value: Any) -> bool:
    allowed = possible_groups(subgroup)
    if not isinstance(value, str) or allowed is not None:
        return isinstance(value, str) and value in (allowed or ())
    try:
        values.passed_value(value)
    except values.OddValue:
        return False
    return True


def _odd_values(meta: dict[str, Any], card: Card | None) -> list[str]:
    """Fields with a value that the converter cannot have written: patient numbers have no pattern to search for."""
    modalities = set(card.modalities) if card else set()
    problem_of = {task.name: task.problem for task in card.tasks} if card else {}
    groups = meta.get("subgroups")
    geometries = meta.get("geometry")
    labels = meta.get("labels")
    right = {
        "schema_version": _whole(meta.get("schema_version"), 99),
        "dataset": card is not None and meta.get("dataset") == card.name,
        "split": meta.get("split") in SPLITS,
        "key": bool(KEY_PATTERN.fullmatch(str(meta.get("key")))),
        "group": bool(_HASH.fullmatch(str(meta.get("group")))),
        "exam": bool(_HASH.fullmatch(str(meta.get("exam")))),
        "side": bool(_SIDE.fullmatch(str(meta.get("side")))),
        "labels": isinstance(labels, dict)
        and set(labels) <= set(problem_of)
        and not any(problem_of[name](label) for name, label in labels.items()),
        "subgroups": isinstance(groups, dict)
        and card is not None
        and card.source is not None
        and set(groups) <= set(card.source.subgroups)
        and all(_group_allowed(card.source.subgroups[name], value) for name, value in groups.items()),
        "modalities": isinstance(meta.get("modalities"), list) and set(map(str, meta["modalities"])) <= modalities,
        "geometry": isinstance(geometries, dict)
        and set(geometries) <= modalities
        and all(
            _measures(value)
            for geometry in geometries.values()
            for value in (geometry.values() if isinstance(geometry, dict) else ("",))
        ),
        "screening": meta.get("screening") in (True, False, None),
        "vendor": meta.get("vendor") in VENDORS,
    }
    return [name for name, good in right.items() if name in meta and not good]


def _scan_meta(scan: _Scan, place: str, data: bytes, card: Card | None) -> None:
    meta = scan.json(place, data)
    if not isinstance(meta, dict):
        return
    unknown = sorted(set(meta) - META_FIELDS)
    geometries = meta.get("geometry")
    for geometry in geometries.values() if isinstance(geometries, dict) else ():
        unknown += sorted(set(geometry) - GEOMETRY_FIELDS) if isinstance(geometry, dict) else []
    if unknown:
        scan.report(place, f"has {len(unknown)} fields that no shard may have")
    for name in _odd_values(meta, card):
        scan.report(place, f"has a value of {name} that no shard may have")


def _scan_table(scan: _Scan, place: str, data: bytes, card: Card | None) -> None:
    """A row of a table modality holds numbers of the columns that the card lists, and nothing else."""
    row = scan.json(place, data)
    modality = place.split(", ")[-1].split(".")[0]
    columns = {one.name: {column.name for column in one.columns} for one in (card.inputs if card else ())}
    if not isinstance(row, dict) or not set(row) <= columns.get(modality, set()):
        scan.report(place, "has columns that no shard may have")
    elif not all(value is None or (isinstance(value, int | float)) for value in row.values()):
        scan.report(place, "has a value that is no number")


def _card_of(folder: Path) -> Card | None:
    """The card that the manifests of a folder carry."""
    for path in sorted(folder.rglob("manifest.json")):
        try:
            content = json.loads(path.read_bytes())
            return card_from(content["card"], str(path)) if "card" in content else find_card(str(content["dataset"]))
        except (ValueError, KeyError, TypeError, ConfigError):
            continue  # what is wrong with a manifest is told where it is loaded
    return None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Types of the chunks of a PNG; ``trailer`` for bytes after its end, ``damaged`` where lengths do not add up."""
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        yield kind
        place += 12 + length
        if kind == b"IEND":
            if place != len(data):
                yield b"trailer"
            return
    yield b"damaged"


def _scan_pixels(scan: _Scan, place: str, extension: str, data: bytes) -> None:
    """A pixel member must be what the codec writes, and none of its bytes may say anything."""
    if extension == "png":
        if not data.startswith(_PNG_SIGNATURE) or set(_png_chunks(data)) - _PNG_CHUNKS:
            scan.report(place, "is not a plain PNG: it has text, time, EXIF or foreign data")
    elif extension == "b2":
        if not data.startswith(_B2_MAGIC):
            scan.report(place, "does not begin as pixel data does")
    else:
        scan.report(place, f"is a kind of member that no shard may have (.{extension})")
    if not _nothing_but_pixels(extension, data):
        scan.data(place, data)


def _nothing_but_pixels(extension: str, data: bytes) -> bool:
    """Whether the bytes are exactly those that the codec gives to the pixels in them: then nothing else is there.

    Searching them would find numbers by chance: the values of dark grey are the characters of digits.
    """
    from m4oe_ds.data import codecs  # numerical libraries, which no --help should load

    try:
        return codecs.encode(codecs.decode(data, extension), extension) == data
    except (DataError, ValueError):
        return False


def _scan_tar(scan: _Scan, path: Path, place: str, pixels: bool, card: Card | None) -> None:
    """Scans headers, padding and members of one tar; members are named by their number."""
    try:
        with tarfile.open(path, "r:") as archive:
            end = 0
            for number, member in enumerate(archive):
                here = f"{place}, member {number}"
                stem, _, extension = member.name.partition(".")
                if not KEY_PATTERN.match(stem):
                    scan.report(here, "is not named after a sample key")
                header = (stem, extension, member.uname, member.gname, member.linkname)
                for text in (*header, *member.pax_headers.values()):
                    scan.text(here, text)
                if member.mtime != 0:
                    scan.report(place, "has members with a time of modification")
                stream = archive.extractfile(member)
                if stream is None:
                    scan.report(here, "is not a plain file")
                    continue
                kind = extension.rsplit(".", 1)[-1]
                if kind == "json" and extension == "meta.json":
                    _scan_meta(scan, f"{place}, {extension} of member {number}", stream.read(), card)
                elif kind == "json":
                    _scan_table(scan, f"{place}, {extension} of member {number}", stream.read(), card)
                elif pixels:
                    _scan_pixels(scan, here, kind, stream.read())
                end = member.offset_data + -(-member.size // 512) * 512
        with path.open("rb") as raw:
            raw.seek(end)
            if raw.read().strip(b"\0"):
                scan.report(place, "has data after its last member")
    except (tarfile.TarError, OSError, EOFError) as error:
        scan.report(place, f"is not a readable tar ({type(error).__name__}); copy it again")


def _scan_page(scan: _Scan, place: str, data: bytes) -> None:
    """An HTML report: its text, and the pictures in it."""
    text = data.decode("utf-8", "replace")
    for match in _EMBEDDED_PNG.finditer(text):
        _scan_pixels(scan, f"{place}, a picture", "png", base64.b64decode(match[1]))
    plain = _EMBEDDED_PNG.sub("", text)
    for token in re.split(r"<[^>]*>|\s+", plain):  # one by one, so that a hashed key is recognised as one
        if token:
            scan.text(place, token)
    scan.text(
        place, re.sub(r"[a-z0-9-]+-[0-9a-f]{16}(-[a-z])?", "", plain)
    )  # again in one piece: dates may hold blanks


def scan_identifiers(folder: Path, pixels: bool = True) -> list[str]:
    """Problems with identifying content anywhere below a folder of shards; the lines never quote it.

    Args:
        pixels: whether the bytes of pixel members are searched too, which takes most of the time. Without them hidden
            files, which an unfinished conversion has, are left out as well.
    """
    folder = Path(folder)
    scan, card = _Scan(), _card_of(folder)
    for path in track(sorted(folder.rglob("*")), "searched for identifiers", "files"):
        place = path.relative_to(folder)
        if not path.is_file() or (not pixels and any(part.startswith(".") for part in place.parts)):
            continue
        for part in place.parts:
            scan.text("a file or folder name", part)
        if path.suffix == ".tar":
            _scan_tar(scan, path, str(place), pixels, card)
        elif path.suffix == ".json":
            scan.json(str(place), path.read_bytes())
        elif path.suffix == ".html":
            _scan_page(scan, str(place), path.read_bytes())
        else:
            scan.report(str(place), "is neither a shard nor a report; move it out of this folder")
            scan.data(str(place), path.read_bytes())
    return scan.finish()
