"""The door for Python: from a network in memory to a smaller one, its numbers and its files."""
