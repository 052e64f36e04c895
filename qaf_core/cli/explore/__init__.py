"""Commands that explore a model before anything is chosen."""
