"""The report: one self-contained file that a board can sign."""
