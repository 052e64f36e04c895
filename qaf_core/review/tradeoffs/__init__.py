"""Runs against each other: axes, targets, fronts, figures, and what differs by more than chance."""
