"""What a network holds and what shall become of it: rows, plans, rules, cost. Free of torch."""
