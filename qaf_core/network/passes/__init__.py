"""Changes of a captured network that leave what it computes as it is, but for rounding."""
