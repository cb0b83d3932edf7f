"""Loaded models: hyperparameters, weights by name, the forward pass, and the paged KV cache."""
