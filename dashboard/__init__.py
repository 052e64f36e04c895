"""The browser dashboard: pages over the run store; it holds no tensors and never imports torch."""
