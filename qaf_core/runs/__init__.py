"""Runs: their store, their queue and the process that executes them."""
