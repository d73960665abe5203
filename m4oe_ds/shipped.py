"""The files that come with the package: configurations, DeepSpeed JSONs and SLURM scripts, found by name.

In a checkout they are the folders ``configs``, ``ds_configs`` and ``slurm`` beside the package; a wheel carries the
same folders inside it (``setup.py``).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import nearest

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Kind:
    """A kind of shipped file.

    Attributes:
        folder: name of its folder.
        suffix: of its files.
        what: what one is called in a message.
        option: the option that names one.
        other: suffix of the files that are given to this option by mistake, and the option that they belong to.
    """

    folder: str
    suffix: str
    what: str
    option: str
    other: tuple[str, str]


CONFIG = Kind("configs", ".yaml", "configuration", "--config", (".json", "--ds_config"))
DS_CONFIG = Kind("ds_configs", ".json", "DeepSpeed configuration", "--ds_config", (".yaml", "--config"))
FOLDERS = ("configs", "ds_configs", "slurm")


def folder(name: str) -> Path:
    """Where a folder of shipped files is."""
    inside = _PACKAGE / "shipped_files" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def names(kind: Kind) -> list[str]:
    """Every shipped file of a kind by the name that finds it, such as ``embed`` or ``paper/embed``; sorted."""
    root = folder(kind.folder)
    found = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{kind.suffix}"))
    return sorted(name for name in found if not name.startswith("cards/"))


def find(kind: Kind, text: str | Path) -> Path:
    """The file that an option names: a path of the user's own, else the name of a shipped one, such as ``paper/embed``.

    Raises:
        ConfigError: neither; a folder; a file of the other kind.
    """
    text = str(text)
    path = Path(text)
    if path.is_file():
        if path.suffix.replace(".yml", ".yaml") == kind.other[0]:
            fix = f"give a {kind.suffix} file here, and this one to {kind.other[1]}"
            raise ConfigError(f"{text} is no {kind.what}", kind.option, fix)
        return path
    known = names(kind)
    if text in known:
        return folder(kind.folder) / f"{text}{kind.suffix}"
    if path.is_dir():
        raise ConfigError(f"{text} is a folder, not a {kind.what}", kind.option, f"give a {kind.suffix} file")
    name = text.removeprefix(f"{kind.folder}/").removesuffix(kind.suffix)
    if name in known:  # an edited copy may be meant, seen from another folder
        raise ConfigError(f"no such file {text}", kind.option, f"write {name} for the one that comes with m4oe_ds")
    raise ConfigError(
        f"no such {kind.what}: {text}",
        kind.option,
        f"give the path of a {kind.suffix} file, or the name of a shipped one{nearest(name, known)}",
    )


def copy(target: Path) -> list[Path]:
    """Copies every shipped file below a folder, to be edited there.

    Returns:
        the files written.

    Raises:
        ConfigError: one of them is there already; nothing is written then.
        OSError: the folder cannot be written to.
    """
    pairs = [
        (source, target / name / source.relative_to(folder(name)))
        for name in FOLDERS
        for source in sorted(folder(name).rglob("*"))
        if source.is_file() and "__pycache__" not in source.parts
    ]
    for _, copied in pairs:
        if copied.exists():
            raise ConfigError("is there already", str(copied), "choose another folder, or move it away")
    for source, copied in pairs:
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copied)
    return [copied for _, copied in pairs]
