"""Integer grids: scales, codes and their packing."""
