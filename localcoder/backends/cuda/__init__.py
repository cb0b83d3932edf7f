"""The CUDA core: kernels on an NVIDIA card, or the same ones emulated on the CPU for tests."""
