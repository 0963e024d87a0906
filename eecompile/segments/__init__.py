"""The ONNX writer: a student cut at its exits into graphs and weight files."""
