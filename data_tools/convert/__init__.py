"""The work of a conversion, from an archive to shards; ``python -m data_tools.convert``."""

from data_tools.convert.command import convert
from data_tools.convert.options import ConvertOptions

__all__ = ["ConvertOptions", "convert"]
