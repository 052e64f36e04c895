"""The Decide page: criteria, verdict, what changed, business case, risks, report."""
