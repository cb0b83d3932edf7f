"""The models on this machine, by name, and where they come from."""
