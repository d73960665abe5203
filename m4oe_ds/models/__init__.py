"""Models by name. ``build(config)`` makes one, ``available()`` lists them; importing this package imports no model."""

from m4oe_ds.models.registry import available, build, spec_for

__all__ = ["available", "build", "spec_for"]
