"""Images in memory: sets, labels, decoding, splits."""
