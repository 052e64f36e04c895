"""Commands about the runs of a workspace."""
