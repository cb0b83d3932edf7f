"""What is learned by running a model: perplexity and speed."""
