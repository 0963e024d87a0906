"""What runs a graph: ONNX Runtime on the CPU."""
