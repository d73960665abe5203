"""``python -m data_tools.convert``."""

import sys

from data_tools.convert.command import main

sys.exit(main())
