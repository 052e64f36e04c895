"""From budgets to a plan: what is allowed, the exact choice among settings, what is expected of it."""
