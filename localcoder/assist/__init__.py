"""What is known about source text: what of it a model should see, where a completion ends. Knows no tensors."""
