"""What a decision rests on, kept with a run: predictions of both networks, robustness, stability."""
