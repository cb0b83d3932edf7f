"""The calibration text that ships with the package."""

from __future__ import annotations

from tiny_model import SPECIAL_TOKENS

from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure.calibration import calibration_text
from localcoder.tokenizer import Tokenizer


def test_it_has_what_the_family_writes():
    text = calibration_text()
    assert 60_000 < len(text.encode()) < 120_000
    assert "\r" not in text
    samples = {
        "Python": "def quicksort(arr):",
        "C": "#include <stdio.h>",
        "C++": "std::priority_queue",
        "Java": "public static void main",
        "JavaScript": "document.querySelectorAll",
        "TypeScript": "export class LruCache<K, V>",
        "PHP": "<?php",
        "C#": "public async Task",
        "Bash": "#!/usr/bin/env bash",
        "Go": "func main() {",
        "Rust": "impl<'a> Parser<'a>",
        "SQL": "CREATE TABLE",
        "HTML": "<!DOCTYPE html>",
        "CSS": "@media (max-width",
        "JSON": '"devDependencies"',
        "YAML": "apiVersion: apps/v1",
        "Makefile": ".PHONY:",
        "chat": "### Instruction:\n",
        "Chinese": "二分查找",
    }
    assert not [language for language, sample in samples.items() if sample not in text]


def test_its_special_tokens_are_the_family_s(shared):
    with GGUFFile.open(shared / "deepseek-coder/vocab.gguf") as file:
        tokenizer = Tokenizer.from_gguf(file)
    ids = tokenizer.tokenize(calibration_text(), bos=False, parse_special=True)
    counts = {token: ids.count(tokenizer.id_of(token)) for token in SPECIAL_TOKENS}
    assert counts["<｜fim▁begin｜>"] == counts["<｜fim▁hole｜>"] == counts["<｜fim▁end｜>"] > 15
    assert counts["<|EOT|>"] > 5
    assert counts["<｜end▁of▁sentence｜>"] > 30
    assert len(ids) > 40 * 512
    assert tokenizer.detokenize(ids, special=True) == calibration_text()


def test_it_does_not_repeat_itself():
    """Filler would weigh its activations double."""
    text, n = calibration_text(), 500
    pieces = [text[at : at + n] for at in range(0, len(text) - n, n)]
    assert all(text.count(piece) == 1 for piece in pieces)
