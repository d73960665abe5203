"""``python -m m4oe_ds``: the same as the ``m4oe`` command."""

import sys

from m4oe_ds.cli import main

sys.exit(main())
