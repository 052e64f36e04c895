"""One file a page: layout only, no tensors, no business rules."""
