"""Lines of ``log.jsonl`` as named figures: one name per measure and per layer, the same in training and validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GROUPS = {  # key of a line: group and name of the figure; a key that is not here is a group of its own
    "loss": "loss/total",
    "losses": "loss",
    "mi": "loss/mutual_information",
    "lr": "optimizer/rate",
    "grad_norm": "optimizer/grad_norm",
    "skipped_steps": "optimizer/skipped_steps",
    "samples_per_s": "speed/samples_per_s",
    "tflops_per_s": "speed/tflops_per_s",
    "mfu": "speed/mfu",
    "all_to_all_bytes_per_step": "speed/all_to_all_bytes_per_step",
    "max_memory_bytes": "speed/max_memory_bytes",
    "without_improvement": "loss/validations_without_improvement",
}
LEFT_OUT = ("step", "event", "labels", "epoch", "samples", "dimension")  # where a figure is, and what never changes
SELDOM_CHANGE = ("train/optimizer/skipped_steps", "train/speed/all_to_all_bytes_per_step")  # a curve from then on


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """``{kind/group/name: value}`` of a line, where kind is ``train`` or the event of the line."""
    kind = record.get("event", "train")
    found: dict[str, float] = {}
    for key, value in record.items():
        if key == "router_scale" and isinstance(value, Mapping):
            found |= {f"{kind}/routing/{layer}/scale": scale for layer, scale in value.items()}
        elif key not in LEFT_OUT:
            found |= {f"{kind}/{name}": number for name, number in _numbers(GROUPS.get(key, key), value)}
    return found


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Numbers at any depth, with the path to them; text, lists and truth values are no figures."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in LEFT_OUT:
                yield from _numbers(f"{name}/{key}", item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


class Changing:
    """Leaves out figures of :data:`SELDOM_CHANGE` until they change for the first time."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._moved: set[str] = set()

    def only(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What is worth a point of a curve."""
        for name in SELDOM_CHANGE:
            if name in figures and figures[name] != self._first.setdefault(name, figures[name]):
                self._moved.add(name)
        return {k: v for k, v in figures.items() if k not in SELDOM_CHANGE or k in self._moved}
