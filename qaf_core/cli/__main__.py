"""``python -m qaf_core.cli`` is ``qaf``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # where it was started: what lies there is imported only where the user names it

from qaf_core.cli.entry import run

run()
