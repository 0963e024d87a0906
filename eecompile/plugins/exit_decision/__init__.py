"""The exit decision on a device: one kernel, as a TensorRT plugin library and as a plugin that engines carry."""
