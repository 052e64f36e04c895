"""The layers of a captured network and the chains that take their place."""
