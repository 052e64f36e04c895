"""From a compressed network to ONNX files, integer or floating-point, and the check that they agree."""
