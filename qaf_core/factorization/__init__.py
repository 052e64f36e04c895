"""Structures (CP, Tucker-2, SVD), the joint solver and its rivals."""
