"""What pages know: plans, runs, models and work as rows, free of layout."""
