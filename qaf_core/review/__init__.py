"""Charts and documents made from stored runs."""
