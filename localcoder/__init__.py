"""localcoder: a quantized local runtime for the DeepSeek-Coder models."""
