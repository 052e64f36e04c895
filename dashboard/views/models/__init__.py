"""The Models page: what can be compressed, and the user's own."""
