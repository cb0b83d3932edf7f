"""Vocabularies with their tokenizer.json: the real one, the trained checkpoint's, and one trained here on the spot."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, decoders, models, trainers
from tokenizers import Tokenizer as Oracle
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer

from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
ADDED_CHARACTERS = "õ÷ÁýÀÿøúþüùöû"
SPECIAL = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<pad>",
    "<|User|>",
    "<|Assistant|>",
    "<|EOT|>",
]
PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
    ]
    + [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


@dataclass
class Metadata:
    """What a vocabulary's GGUF metadata say, for tests to spoil before they are written."""

    tokens: list[str]
    types: list[int] | None
    merges: list[str]
    scalars: dict[str, Any]

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_token_list(self.tokens)
        writer.add_token_merges(self.merges)
        if self.types is not None:
            writer.add_token_types(self.types)
        for key, value in self.scalars.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
            add(f"tokenizer.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    def open(self, folder: Path) -> Tokenizer:
        with GGUFFile.open(self.write(folder / "vocabulary.gguf")) as file:
            return Tokenizer.from_gguf(file)


def metadata_of(source: dict[str, Any], n_vocab: int) -> Metadata:
    """A tokenizer.json as the present llama.cpp converter would write it, said as briefly as possible."""
    model = source["model"]
    added = {token["id"]: token for token in source["added_tokens"]}
    normal = {i: token for token, i in model["vocab"].items()}
    tokens = [added[i]["content"] if i in added else normal.get(i, f"[PAD{i}]") for i in range(n_vocab)]
    types = [
        (CONTROL if added[i]["special"] else USER_DEFINED) if i in added else NORMAL if i in normal else UNUSED
        for i in range(n_vocab)
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    scalars = {"ggml.model": "gpt2", "ggml.pre": "deepseek-coder", "ggml.add_bos_token": True}
    for role, spelling in (("bos", SPECIAL[0]), ("eos", SPECIAL[1]), ("eot", SPECIAL[8])):
        scalars[f"ggml.{role}_token_id"] = tokens.index(spelling)
    return Metadata(tokens, types, merges, scalars)


@pytest.fixture(scope="session")
def trained_json() -> dict[str, Any]:
    """tokenizer.json of a small vocabulary, trained here on one module of Python and a few scripts."""
    oracle = Oracle(models.BPE())
    oracle.pre_tokenizer = _pre_tokenizer()
    oracle.decoder = decoders.ByteLevel()
    corpus = [Path(sys.modules["json"].__file__).with_name("decoder.py").read_text(encoding="utf-8")]
    corpus += [
        "模型写代码 的 测试，你好世界。",
        "Привет, мир! Это проверка.",
        "日本語 한국어 العربية",
        "naïve café — “quotes”",
    ] * 20
    alphabet = [c for c in sorted(ByteLevel.alphabet()) if c not in ADDED_CHARACTERS]
    oracle.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    oracle.add_tokens([AddedToken(c, normalized=True) for c in ADDED_CHARACTERS])
    oracle.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return json.loads(oracle.to_str())


def _pre_tokenizer() -> PreTokenizer:
    empty = json.loads(Oracle(models.BPE()).to_str())
    return Oracle.from_str(json.dumps({**empty, "pre_tokenizer": PRE_TOKENIZER})).pre_tokenizer


@pytest.fixture
def trained_metadata(trained_json: dict[str, Any]) -> Metadata:
    return metadata_of(trained_json, 960)


@pytest.fixture(scope="session")
def trained(trained_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return metadata_of(trained_json, 960).open(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session", params=["trained", "deepseek-coder", "python-9m"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Oracle]:
    """A tokenizer from GGUF and the tokenizer.json it must agree with."""
    if request.param == "trained":
        source = request.getfixturevalue("trained_json")
        return request.getfixturevalue("trained"), Oracle.from_str(json.dumps(source))
    shared = request.getfixturevalue("shared")
    if request.param == "deepseek-coder":
        with GGUFFile.open(shared / "deepseek-coder/vocab.gguf") as file:
            return Tokenizer.from_gguf(file), Oracle.from_file(str(shared / "deepseek-coder/tokenizer.json"))
    path = shared / "checkpoints/python-9m/tokenizer.json"
    source = json.loads(path.read_text(encoding="utf-8"))
    return metadata_of(source, 8192).open(tmp_path_factory.mktemp("python-9m")), Oracle.from_file(str(path))
