"""The command line: ``qaf --help``."""

from qaf_core.cli.entry import main

__all__ = ["main"]
