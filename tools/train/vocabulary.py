"""Stage `tokenizer`: a byte-level BPE over the corpus, with the family's pre-tokenizer and special tokens."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from localcoder.errors import FileError, OptionError
from localcoder.files.atomic import write_file
from localcoder.tokenizer.byte_level import ALPHABET
from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE
from localcoder.tokenizer.source import SourceTokenizer
from localcoder.tokenizer.splits import make_pre_tokenizer
from localcoder.tokenizer.tokenizer import Tokenizer
from localcoder.tokenizer.vocabulary import Vocabulary

from .work import json_bytes, require

PRE = "deepseek-coder"
BOS, EOS, PAD, EOT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<pad>", "<|EOT|>"
# In the family's order, at the end of the vocabulary.
SPECIAL_TOKENS = (
    BOS,
    EOS,
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    PAD,
    "<|User|>",
    "<|Assistant|>",
    EOT,
)
_MOST_TEXT = 60_000_000  # characters; more changes few merges


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> RustTokenizer:
    """A tokenizer of exactly `n_vocab` tokens; the same texts give the same one.

    Raises:
        OptionError: the texts are too short for so many tokens, or these too few for the bytes.
    """
    n_learned = n_vocab - len(SPECIAL_TOKENS)
    if n_learned < len(ALPHABET):
        raise OptionError(f"n_vocab is {n_vocab}; expected at least {len(ALPHABET) + len(SPECIAL_TOKENS)}")
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = make_pre_tokenizer(PRE)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_learned, initial_alphabet=list(ALPHABET), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != n_learned:
        raise OptionError(f"the texts give {found} tokens; {n_learned} are wanted: take more text or a lower n_vocab")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS}:0 $A:0", pair=f"{BOS}:0 $A:0 {BOS}:1 $B:1", special_tokens=[(BOS, bos_id)]
    )
    return tokenizer


def sample_of(texts: Iterable[str], seed: int = 0) -> list[str]:
    """Texts drawn by chance, as many as a vocabulary is learned from."""
    chosen = list(texts)
    random.Random(seed).shuffle(chosen)
    n_characters = 0
    for i, text in enumerate(chosen):
        n_characters += len(text)
        if n_characters > _MOST_TEXT:
            return chosen[: i + 1]
    return chosen


def save_tokenizer(tokenizer: RustTokenizer, folder: Path) -> None:
    """Writes tokenizer.json and the files that belong to it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    _save_about(folder)


def copy_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Takes over the vocabulary of an earlier checkpoint; its prompts become the family's.

    Raises:
        FileError: the checkpoint has none.
    """
    source = checkpoint / "tokenizer.json"
    if not source.is_file():
        raise FileError(source, "no such file; expected a checkpoint folder with one")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / "tokenizer.json")
    _save_about(folder)


def _save_about(folder: Path) -> None:
    about = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_file(folder / "tokenizer_config.json", json_bytes(about))
    write_file(folder / "chat_template.jinja", FAMILY_TEMPLATE.encode())


@dataclass
class _Folder:
    """A tokenizer's folder as the converter reads it from a checkpoint."""

    folder: Path
    tokenizer_path: Path
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    config: dict[str, Any]
    generation_config: dict[str, Any]


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that localcoder will have of the trained model, for its prompts to be trained on.

    Raises:
        TokenizerError: it is not a byte-level BPE of this family, or lacks one of its special tokens.
    """
    path = require(folder / "tokenizer.json", "tokenizer")
    read = json.loads(path.read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    source = SourceTokenizer(_Folder(folder, path, read, config, FAMILY_TEMPLATE, {}, {}))
    tokens = [f"[PAD{i}]" if token is None else token for i, token in enumerate(source.tokens)]
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise FileError(path, f"lacks the special token {missing[0]}")
    roles = ("bos", "eos", "eot", "fim_prefix", "fim_suffix", "fim_middle")
    vocabulary = Vocabulary(
        tokens=tokens,
        types=np.array(source.types, np.int32),
        merges=[(left, right) for left, right in (merge.split(" ") for merge in source.merges)],
        pre=source.pre,
        special_ids={role: source.special_ids.get(role) for role in roles},
        add_bos=source.add_bos,
        chat_template=FAMILY_TEMPLATE,
        ids={token: i for i, token in enumerate(tokens)},
    )
    return Tokenizer(vocabulary, name=str(path))
