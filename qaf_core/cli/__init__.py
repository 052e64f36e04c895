"""The command line: ``qaf --help``."""
