"""A network one can see: its graph, closed to blocks where it is large, before and after compression."""
