"""The formats a KV cache is kept in, the largest first. In a module of its own because command lines list them."""

KV_TYPES = ("f16", "q8_0", "q4_0")
