"""A network as the graph of operations that run: how it is captured, what its layers are, how it is run."""
