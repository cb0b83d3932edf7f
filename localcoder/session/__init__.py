"""One timeline of tokens: prefill, decoding, the sampler chain, stops."""
