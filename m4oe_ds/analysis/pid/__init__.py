"""Partial information decomposition of two inputs about a label: exact for tables, estimated for features."""

from m4oe_ds.analysis.pid.decompose import batch, broja, principal_components

__all__ = ["batch", "broja", "principal_components"]
