"""What TensorRT runs for us: plugins, in CUDA and C++, and how they get to it."""
