"""The work of a conversion, from an archive to shards; ``python -m data_tools.convert``."""
