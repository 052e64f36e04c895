"""The Export page: files, and how fast they are."""
