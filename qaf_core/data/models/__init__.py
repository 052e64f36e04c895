"""Which networks can be compressed and how they are built."""
