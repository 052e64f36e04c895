"""From a plan to a compressed, calibrated and evaluated network."""
