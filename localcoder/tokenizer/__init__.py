"""Text to token ids and back, built from GGUF metadata on the `tokenizers` library; knows no tensors."""

from localcoder.tokenizer.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
