"""What every setting of every layer is expected to harm: curvature, candidate weights, the table."""
