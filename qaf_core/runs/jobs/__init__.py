"""Long work on stored runs: one module a kind."""
