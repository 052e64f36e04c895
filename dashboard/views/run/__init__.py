"""The Live run page: a run at work, and what it came to."""
