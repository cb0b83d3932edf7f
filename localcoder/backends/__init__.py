"""Ways to compute a recorded program: `c`, `numba`, and the numpy reference."""
