"""Models by name. ``build(config)`` makes one, ``available()`` lists them; importing this package imports no model."""

from m4oe_ds.models.registry import build, spec_for
from m4oe_ds.models.systems import available

__all__ = ["available", "build", "spec_for"]
