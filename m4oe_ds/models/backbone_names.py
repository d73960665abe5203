"""Names of the networks of timm, read from its source: importing it takes seconds, and torch."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.M)
_DEPRECATED = re.compile(r"^\s+'(\w+)':", re.M)  # old names, which timm still takes
# options that embedders decide themselves, or other options of the configuration
FIXED = (
    "num_classes",
    "global_pool",
    "in_chans",
    "pretrained",
    "pretrained_cfg",
    "checkpoint_path",
    "cache_dir",
)
# options that most networks have; timm would build one without blocks, or take a text for true
_COUNTS = ("depth", "embed_dim", "num_heads", "patch_size")
_SWITCHES = ("qkv_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm", "dynamic_img_size")
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_FEWEST = 500  # timm has more than 1000: fewer were not all found
_NEAR = 5


def unknown(name: str) -> str:
    """What to say of a name that timm does not have; empty if it has it, or if that cannot be told.

    Names of places (``hf-hub:..``, ``local-dir:..``) are timm's to judge; a tag (``.augreg_in21k``) is of the weights.
    """
    plain = name.partition(".")[0]
    if ":" in name or _defined(plain):
        return ""
    known = networks()
    if not known or plain in known:
        return ""
    near = sorted(known, key=lambda one: (-_alike(plain, one), one))[:_NEAR]
    return f"timm has no network {name!r}; near: {', '.join(near)}"


def unfit(option: str, value: Any) -> str:
    """What to say of a value that no network can have for an option; empty if one could.

    Args:
        option: of timm.
        value: as the configuration has it.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if option in _COUNTS:
        # a list has one for every stage; a patch has one side
        items = value if isinstance(value, list) and value and option != "patch_size" else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 1 for item in items):
            return f"must be a whole number from 1, got {value!r}"
    elif option in _SWITCHES and not isinstance(value, bool):
        return f"must be true or false, got {value!r}"
    elif option in _RATES and not (number and 0 <= value < 1):
        return f"must be a number from 0 and below 1, got {value!r}"
    elif option == "mlp_ratio" and not isinstance(value, list) and not (number and value > 0):
        return f"must be a number above 0, got {value!r}"
    return ""


@cache
def networks() -> frozenset[str]:
    """Names that timm registers; empty where its source is not what this expects, and nothing can be said."""
    names: set[str] = set()
    for path in _sources():
        text = path.read_text(encoding="utf-8", errors="replace")
        names.update(_REGISTERED.findall(text))
        if "register_model_deprecations" in text:
            names.update(_DEPRECATED.findall(text.partition("register_model_deprecations(")[2]))
    return frozenset(names) if len(names) >= _FEWEST else frozenset()


@cache
def _defined(name: str) -> bool:
    """Whether a registered function has the name: much quicker than to find all of them."""
    line = f"@register_model\ndef {name}(".encode()
    return any(line in path.read_bytes() for path in _sources())


def _sources() -> list[Path]:
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return []
    models = Path(found.submodule_search_locations[0]) / "models"
    first = models / "vision_transformer.py"  # what is asked for most often
    return [first, *sorted(path for path in models.glob("*.py") if path != first)] if first.is_file() else []


def _alike(name: str, known: str) -> float:
    """Likeness of a name to another, or to the beginning of a longer one."""
    return max(difflib.SequenceMatcher(None, name, text).ratio() for text in (known, known[: len(name)]))
