"""Whether what a model writes works: HumanEval in eight languages and MBPP, by DeepSeek-Coder's protocol."""
