"""``python -m qaf_core.cli`` is ``qaf``."""

from qaf_core.cli.entry import run

run()
