"""The findings of a check as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_tools.cards.check import headline
from data_tools.convert.report import plural

_ODD_FILES = {
    "not_named": "not named (taken for absent)",
    "missing": "MISSING",
    "outside": "OUTSIDE the folder",
}
FACTS_SHOWN = 4  # values of a fact in a line


def lines_of(content: Mapping[str, Any]) -> list[str]:
    """All findings, problems and warnings last, and what to do next."""
    lines = [headline(dict(content)), *_splits(content)]
    if content["files"]:
        lines += ["", "files", *_files(content["files"])]
    lines += ["", "answers"]
    for name, entry in content["labels"].items():
        lines += _answers(name, entry)
    if content["columns"]:
        lines += ["", "columns of tables", *(f"  {name}: {_column(one)}" for name, one in content["columns"].items())]
    if content["subgroups"]:
        lines += ["", "subgroups"]
        lines += [f"  {name}: {_counts(counts)}" for name, counts in content["subgroups"].items()]
    if content.get("read"):
        lines += ["", *_read(content["read"])]
    if content.get("examples"):
        lines += ["", f"rows of {content['table']}, as a spreadsheet counts"]
        lines += [f"  {_example(one)}" for one in content["examples"]]
    for kind in ("warnings", "problems"):
        if content[kind]:
            lines += ["", kind, *(f"  {line}" for line in content[kind])]
    return [*lines, "", f"next: {content['next']}"]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _splits(content: Mapping[str, Any]) -> list[str]:
    splits = content["splits"]
    if not splits:
        return []
    groups = plural(content["group"])
    counts = ", ".join(
        f"{name} {one['samples']}" + (f" ({one['groups']} {groups})" if one["groups"] != one["samples"] else "")
        for name, one in splits["counts"].items()
    )
    shares = "/".join(map(str, splits["shares"]))
    how = {
        "all": f"drawn by the conversion, {shares} percent",
        "val": "val is drawn from train by the conversion",
        "": "as the table says",
    }[splits["drawn"]]
    return [f"splits: {counts}; {how}"]


def _files(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, one in files.items():
        odd = [f"{one[key]} {words}" for key, words in _ODD_FILES.items() if one[key]]
        found = ", ".join([f"{one['there']} there", *odd])
        lines.append(f"  {name} ({one['kind']}, {one['pattern']}): {found}")
    return lines


def _range(values: Mapping[str, Any]) -> str:
    unit = f" {values['unit']}" if values.get("unit") else ""
    return (
        f"{values['least']:.4g} to {values['most']:.4g}{unit}, quartiles {values['quarter']:.4g}, "
        f"{values['median']:.4g}, {values['three_quarters']:.4g}"
    )


def _answers(name: str, entry: Mapping[str, Any]) -> list[str]:
    lines = [f"  {name} ({entry['kind']})"]
    counts: Mapping[str, Mapping[str, int]] = entry["counts"]
    words = list(dict.fromkeys(word for one in counts.values() for word in one))
    width = max([len(word) for word in words] + [0])
    lines.append(f"    {'':{width}}  " + " ".join(f"{split:>8}" for split in counts))
    for word in words:
        lines.append(f"    {word:{width}}  " + " ".join(f"{one.get(word, 0):>8}" for one in counts.values()))
    if "range" in entry:
        lines.append(f"    {_range(entry['range'])}")
    if "follow_up" in entry:
        lines.append(f"    followed {_range(entry['follow_up'])}")
        for horizon, one in entry["within"].items():
            lines.append(f"    to {horizon}: {one['events']} events, {one['followed']} followed so long without one")
    return lines


def _column(entry: Mapping[str, Any]) -> str:
    missing = f", missing {entry['missing']}" if entry["missing"] else ""
    if "counts" in entry:
        return _counts(entry["counts"]) + missing
    return (_range(entry["range"]) if "range" in entry else "no value") + missing


def _read(read: Mapping[str, Any]) -> list[str]:
    lines = [f"read {read['samples']} of {read['of']} samples, {read['good']} images and volumes are good"]
    for name, counts in read["facts"].items():
        shown = list(counts.items())[:FACTS_SHOWN]
        more = f", {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        lines.append(f"  {name.replace('_', ' ')}: {_counts(dict(shown))}{more}")
    for name, counts in read["bad"].items():
        lines.append(f"  {name} BAD: {_counts({reason.replace('_', ' '): n for reason, n in counts.items()})}")
    for name, shares in read["mask_shares"].items():
        if shares:
            listed = ", ".join(f"{one} {100 * share:.2f} %" for one, share in shares.items())
            lines.append(f"  {name}, share of the stored picture: {listed}")
    return lines


def _example(one: Mapping[str, Any]) -> str:
    found = [name for name, there in one["inputs"].items() if there]
    lacking = [f"no {name}" for name, there in one["inputs"].items() if not there]
    labels = [f"{name}={_label(label)}" for name, label in one["labels"].items()]
    split = f", {one['split']}" if one["split"] else ""
    return f"row {one['row']}{split}: {', '.join([*found, *lacking])}; {', '.join(labels)}"


def _label(label: Any) -> str:
    if label is None:
        return "?"
    if isinstance(label, list | tuple):
        return _survival(label)
    return f"{label:.4g}" if isinstance(label, float) else str(label)


def _survival(label: Sequence[float]) -> str:
    return f"{label[0]:.4g} ({'event' if label[1] else 'censored'})"
