"""llama-cpp-python's caches of prompts, for programs that set one: here what prompts share is kept without."""

from __future__ import annotations


class BaseLlamaCache:
    """Keeps nothing: `Llama` re-uses the longest prefix of any recent prompt by itself."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes


class LlamaRAMCache(BaseLlamaCache):
    """In place of a cache in memory."""


class LlamaDiskCache(BaseLlamaCache):
    """In place of a cache in a folder; none is made. `Llama.save_state` has what can be kept on disk."""

    def __init__(self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.cache_dir = cache_dir


LlamaCache = LlamaRAMCache
