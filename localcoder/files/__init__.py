"""Files: GGUF and Hugging Face checkpoints as bytes, names and numbers. What they mean is decided elsewhere."""
