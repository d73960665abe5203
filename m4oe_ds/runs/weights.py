"""Consolidated weights: safetensors with whole tensors, every expert included, loadable at any number of ranks.

Made from a checkpoint's files alone, without DeepSpeed, process groups or the model's code, one tensor at a time: at no
moment is more than one output file in memory. Large models are split into several files with an index, in the form that
other programs know (``model.safetensors.index.json``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m4oe_ds.errors import CheckpointError
from m4oe_ds.layers.experts import ExpertWeights
from m4oe_ds.progress import Progress
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.source_files import CARD_SUFFIX, CONFIG_SUFFIX
from m4oe_ds.runs.state_files import StateReader
from m4oe_ds.runs.weight_files import INDEX_SUFFIX, find_weights, read_manifest, remedy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = 8  # names in a message


def consolidate(checkpoint: Path, path: Path, dtype: str = "fp32", max_file_gb: float = 0.0) -> list[Path]:
    """Writes the master weights of a checkpoint as whole tensors.

    Args:
        checkpoint: a ``step-*`` folder.
        path: target, ``*.safetensors``.
        dtype: fp32, bf16 or fp16 (buffers keep theirs).
        max_file_gb: largest size of a file in 10^9 bytes, beyond which a new one is started; 0 = one file.

    Returns:
        The files written; where there are several, an index lies next to them.

    Raises:
        CheckpointError: not a complete checkpoint.
    """
    manifest = read_manifest(checkpoint, ("parameters",))
    reader = StateReader(checkpoint)
    sizes = {name: torch.Size(shape).numel() * DTYPES[dtype].itemsize for name, shape in manifest["parameters"].items()}
    groups = _groups(sizes, max_file_gb * 1e9)
    path.parent.mkdir(parents=True, exist_ok=True)
    files, where = [], {}
    with Progress("weights", len(sizes), "tensors").start() as progress:
        for number, names in enumerate(groups):
            target = (
                path
                if len(groups) == 1
                else path.with_name(f"{path.stem}-{number + 1:05d}-of-{len(groups):05d}{path.suffix}")
            )
            content = {}
            for name in names:
                content[name] = _whole(reader, name, manifest["parameters"][name]).to(DTYPES[dtype])
                progress.update()
            if number == 0:
                content.update({name: reader.buffer(name).contiguous() for name in reader.buffers})
            temporary = target.with_name(f".{target.name}")
            # one entry: with several their order, and so the bytes of the file, would differ from run to run
            save_file(content, str(temporary), metadata={"format": "pt"})
            temporary.replace(target)
            files.append(target)
            where.update(dict.fromkeys(content, target.name))
    index = path.with_name(path.name + INDEX_SUFFIX)
    index.unlink(missing_ok=True)
    if len(groups) > 1:
        path.unlink(missing_ok=True)
        index.write_text(json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}, indent=1))
    return files


def describe(run: RunFolder, weights: Path) -> Path | None:
    """Copies what tells of a run next to weights exported to ``DIR/weights/model.safetensors``: DIR opens as a run.

    Args:
        run: the run.
        weights: the file to be exported.

    Returns:
        DIR; None where it is the run itself, or the file is called something else.

    Raises:
        CheckpointError: DIR is another run.
    """
    target = RunFolder(weights.parent.parent)
    if target.weights != weights or target.path.resolve() == run.path.resolve() or not run.config.is_file():
        return None
    if target.config.is_file() and target.config.read_bytes() != run.config.read_bytes():
        raise CheckpointError("is another run", str(target.path), "choose another --out")
    target.path.mkdir(parents=True, exist_ok=True)
    for path in run.origin:
        if path.is_file():
            shutil.copyfile(path, target.path / path.name)
    return target.path


def describe_file(run: RunFolder, weights: Path) -> Path | None:
    """Copies the configuration and the card that ``model.init_from`` reads next to a file of exported weights.

    Args:
        run: the run.
        weights: the file that was exported, by whatever name.

    Returns:
        The copy of the configuration; None where the file is the run's own, or the run has no configuration.
    """
    if weights == run.weights or not run.config.is_file():
        return None
    for path, suffix in ((run.config, CONFIG_SUFFIX), (run.card, CARD_SUFFIX)):
        if path.is_file():  # runs older than cards have none
            shutil.copyfile(path, weights.with_name(weights.name + suffix))
    return weights.with_name(weights.name + CONFIG_SUFFIX)


def _whole(reader: StateReader, name: str, shape: list[int]) -> Tensor:
    return reader.read("master", name, 0, torch.Size(shape).numel()).reshape(shape)


def _groups(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names in order, cut before a group would exceed the limit (0 = never); a larger tensor gets a separate file."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if limit and groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


class WholeWeights:
    """Reads a consolidated file, or all files of an index.

    Args:
        path: path of the single file; the index is looked for next to it.

    Attributes:
        files: the files read, by name.

    Raises:
        CheckpointError: neither is there, or one is damaged.
    """

    def __init__(self, path: Path) -> None:
        where = find_weights(path)
        self.files = sorted(set(where.values()))
        try:
            opened = {file: safe_open(str(file), framework="pt") for file in self.files}
        except SafetensorError as error:
            raise CheckpointError(f"is damaged: {error}", str(path), remedy(path)) from None
        self._file: dict[str, Any] = {name: opened[file] for name, file in where.items()}

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def shape(self, name: str) -> list[int]:
        """Sizes of a tensor, without reading it."""
        return list(self._file[name].get_slice(name).get_shape())

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or rows [first, last) of it."""
        if rows is None:
            value: Tensor = self._file[name].get_tensor(name)
            return value
        part: Tensor = self._file[name].get_slice(name)[rows[0] : rows[1]]
        return part


def expert_rows(model: nn.Module) -> dict[str, tuple[tuple[int, int], int]]:
    """``{name of a stacked tensor: (rows [first, last) of the experts held here, number of experts)}``."""
    return {
        f"{prefix}experts.{key}": ((held.expert_ids[0], held.expert_ids[-1] + 1), int(executor.num_experts))
        for name, executor in model.named_modules()
        if isinstance(held := getattr(executor, "experts", None), ExpertWeights)
        for prefix in (f"{name}." if name else "",)
        for key in ("w1", "w2", "w3")
    }


def load(model: nn.Module, path: Path, *, strict: bool = True) -> list[str]:
    """Fills a model built at any ``ep_size`` from consolidated weights; each rank reads only the experts it holds.

    Args:
        strict: differing names or shapes are an error and nothing is loaded; otherwise what fits is loaded and every
            difference is returned.

    Returns:
        One line per missing or unexpected name or differing shape; empty if strict.

    Raises:
        CheckpointError: missing file, or (strict) names and shapes that do not match, all listed.
    """
    stored = WholeWeights(path)
    experts = expert_rows(model)
    target = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    problems = [f"missing {name}" for name in sorted(target.keys() - stored.names)]
    problems += [f"unexpected {name}" for name in sorted(stored.names - target.keys())]
    fitting: dict[str, tuple[int, int] | None] = {}
    for name in sorted(target.keys() & stored.names):
        rows, count = experts.get(name, (None, 0))
        wanted, found = list(target[name].shape), stored.shape(name)
        if rows is not None:
            wanted[0] = count  # the first n of more experts would fit, but they are those of another model
        if found != wanted:
            problems.append(f"{name} has shape {found}, the model wants {wanted}")
        else:
            fitting[name] = rows
    if not (problems and strict):
        with torch.no_grad():
            for name, rows in fitting.items():
                target[name].copy_(stored.read(name, rows))
    if problems and strict:
        what = f"{len(problems)} names do not match: {'; '.join(problems[:SHOWN])}"
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(what + more, str(path), "these are the weights of another model; " + remedy(path))
    return problems
