"""The built-in inspection pictures, drawn when they are needed."""
