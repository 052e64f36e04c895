"""From a plan to a compressed network: solve, exchange, calibrate."""
