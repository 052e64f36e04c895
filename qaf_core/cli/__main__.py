"""``python -m qaf_core.cli`` is ``qaf``."""

import sys

from qaf_core.cli.entry import main

sys.exit(main())
