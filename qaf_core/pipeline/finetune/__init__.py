"""A compressed network learns from its original."""
