"""``python -m data_tools.phantom``."""

import sys

from data_tools.phantom.archive import main

sys.exit(main())
