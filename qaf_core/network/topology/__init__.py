"""How a network's layers are connected: read off its graph once, then described without torch."""
