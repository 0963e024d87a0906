"""eecompile: deploy early-exit transformers as ONNX/TensorRT segments that stop as soon as a gate is confident."""

__version__ = "0.1.0"
