"""What is in a network, what a plan does to it, and what that costs."""
