"""Files of trained weights: checked, read, matched with a network."""
