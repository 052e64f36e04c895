"""Jobs that explore a model before any run: sensitivity, predictions, plans under budgets."""
