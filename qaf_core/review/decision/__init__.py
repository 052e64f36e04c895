"""The decision about a run: criteria, verdict, what changed for whom, costs and risks."""
