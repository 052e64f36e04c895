"""The run store: SQLite, folders of runs, and the records in it."""
