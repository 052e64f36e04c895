"""The process that executes queued work, and the one that keeps it alive."""
