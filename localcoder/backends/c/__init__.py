"""The C core through cffi: one foreign call per step."""
