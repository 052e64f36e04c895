"""The search for a plan: candidates of each layer, their times, and the choice among them."""
