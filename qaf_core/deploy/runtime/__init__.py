"""ONNX Runtime on this machine: sessions, times, energy, what the processor can do."""
