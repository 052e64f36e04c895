"""The Trade-offs page: what was measured, set against size, operations, time and energy."""
