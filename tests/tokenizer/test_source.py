"""tokenizer.json to GGUF metadata: against the `gguf` package's own reading, and what must be refused."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import pytest

from localcoder.errors import TokenizerError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer import Tokenizer
from localcoder.tokenizer.proof import proof_corpus, prove_equal
from localcoder.tokenizer.source import SourceTokenizer

from .conftest import CONTROL, SPECIAL, metadata_of


@dataclass
class Files:
    """A checkpoint folder, given as its contents."""

    folder: Path
    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    def write(self) -> Files:
        for name in ("tokenizer", "tokenizer_config", "config", "generation_config"):
            (self.folder / f"{name}.json").write_text(json.dumps(getattr(self, name)), encoding="utf-8")
        if self.chat_template is not None:
            (self.folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        return self


def write_gguf(source: SourceTokenizer, path: Path, n_vocab: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    source.add_metadata(writer, n_vocab)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture
def files(trained_json: dict[str, Any], tmp_path: Path) -> Files:
    return Files(tmp_path, copy.deepcopy(trained_json)).write()


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@pytest.fixture(params=["base", "instruct", "python-9m"])
def real(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> tuple[Files, int]:
    """The family's own files, laid out as in its repositories."""
    if request.param == "python-9m":
        folder = shared / "checkpoints/python-9m"
        config = load(folder / "config.json")
        tokenizer_config = load(folder / "tokenizer_config.json")
    else:
        folder = shared / "deepseek-coder"
        config = load(folder / "configs/1.3b.json")
        tokenizer_config = load(folder / f"tokenizer_config.{request.param}.json")
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else tokenizer_config.get("chat_template")
    generation_config = load(folder / "generation_config.json")
    found = Files(tmp_path, load(folder / "tokenizer.json"), tokenizer_config, config, generation_config, text)
    return found.write(), config["vocab_size"]


def test_agrees_with_the_gguf_package(real):
    files, n_vocab = real
    source = SourceTokenizer(files)
    with GGUFFile.open(write_gguf(source, files.folder / "out.gguf", n_vocab)) as written:
        metadata = written.metadata
        source.verify(written)
    theirs = gguf.SpecialVocab(files.folder, load_merges=True, n_vocab=n_vocab)
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        assert metadata[f"tokenizer.ggml.{key}_token_id"] == theirs.special_token_ids[role]
    assert metadata["tokenizer.ggml.add_bos_token"] == theirs.add_special_token["bos"]
    assert metadata["tokenizer.ggml.add_eos_token"] == theirs.add_special_token.get("eos", False)
    assert metadata["tokenizer.ggml.merges"] == theirs.merges
    assert metadata.get("tokenizer.chat_template") == theirs.chat_template
    simple = metadata_of(files.tokenizer, n_vocab)
    assert metadata["tokenizer.ggml.tokens"] == simple.tokens
    assert metadata["tokenizer.ggml.token_type"].tolist() == simple.types
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "deepseek-coder"
    for key, spelling in (("eot", "<|EOT|>"), ("fim_pre", "<｜fim▁begin｜>"), ("fim_suf", "<｜fim▁hole｜>")):
        assert simple.tokens[metadata[f"tokenizer.ggml.{key}_token_id"]] == spelling
    assert simple.tokens[metadata["tokenizer.ggml.fim_mid_token_id"]] == "<｜fim▁end｜>"


def test_llama_cpp_reads_what_is_written(real):
    llama_cpp = pytest.importorskip("llama_cpp")
    files, n_vocab = real
    source = SourceTokenizer(files)
    path = write_gguf(source, files.folder / "out.gguf", n_vocab)
    # llama.cpp wants to know the model even where only its vocabulary is loaded.
    writer = gguf.GGUFWriter(path, "llama")
    source.add_metadata(writer, n_vocab)
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile.open(path) as written:
        ours = Tokenizer.from_gguf(written)
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        assert model.n_vocab() == n_vocab
        vocab = llama_cpp.llama_model_get_vocab(model.model)
        for name, expected in (
            ("bos", ours.bos_id),
            ("eos", ours.eos_id),
            ("eot", ours.eot_id),
            ("fim_pre", ours.fim_prefix_id),
            ("fim_suf", ours.fim_suffix_id),
            ("fim_mid", ours.fim_middle_id),
        ):
            assert getattr(llama_cpp, f"llama_vocab_{name}")(vocab) == expected, name
        for text in list(proof_corpus())[:300]:
            for special in (False, True):
                expected = model.tokenize(text.encode(), add_bos=False, special=special)
                assert ours.tokenize(text, bos=False, parse_special=special) == expected, text
    finally:
        model.close()


def test_deepseek_llm_is_recognized(trained_json, tmp_path):
    """v1.5: its chain of splits, written down from llama.cpp's vocabulary file and checked there by its ids."""
    from localcoder.tokenizer.splits import SPLITS

    tokenizer = copy.deepcopy(trained_json)
    steps = tokenizer["pre_tokenizer"]["pretokenizers"]
    split = steps[0]
    tokenizer["pre_tokenizer"]["pretokenizers"] = [
        *({**split, "pattern": {"Regex": pattern}} for pattern in SPLITS["deepseek-llm"]),
        *steps[-2:],
    ]
    files = Files(tmp_path, tokenizer).write()
    source = SourceTokenizer(files)
    assert source.pre == "deepseek-llm"
    with GGUFFile.open(write_gguf(source, tmp_path / "out.gguf", 960)) as written:
        source.verify(written)


def test_ids_come_from_the_nearest_file(files):
    token_id = {token: i for i, token in enumerate(SourceTokenizer(files).tokens)}
    begin, end, pad, eot = (token_id[SPECIAL[i]] for i in (0, 1, 5, 8))
    files.config = {"eos_token_id": pad, "pad_token_id": -1, "bos_token_id": 10**6}
    files.generation_config = {"eos_token_id": begin, "pad_token_id": [pad, end]}
    assert (
        SourceTokenizer(files).special_ids | {"eos": pad, "pad": pad, "bos": begin}
        == SourceTokenizer(files).special_ids
    )
    files.tokenizer_config = {"eos_token": {"content": SPECIAL[8]}, "pad_token": SPECIAL[1], "bos_token": None}
    found = SourceTokenizer(files).special_ids
    assert (found["eos"], found["pad"], found["bos"], found["eot"]) == (eot, end, begin, eot)


@pytest.mark.parametrize(
    ("template", "config", "expected"),
    [
        (None, {}, (True, False)),
        (None, {"add_bos_token": False}, (False, False)),
        (None, {"add_eos_token": True}, (True, True)),
        ([SPECIAL[0], None], {}, (True, False)),
        ([SPECIAL[0], None, SPECIAL[1]], {}, (True, True)),
        ([None], {}, (False, False)),
        ([None, SPECIAL[1]], {"add_bos_token": True, "add_eos_token": False}, (True, False)),
    ],
)
def test_bos_and_eos_are_added_as_the_source_says(files, template, config, expected):
    if template is not None:
        single = [{"SpecialToken": {"id": t, "type_id": 0}} if t else {"Sequence": {"id": "A"}} for t in template]
        files.tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": []}
    files.tokenizer_config = config
    source = SourceTokenizer(files)
    assert (source.add_bos, source.add_eos) == expected


def test_special_looking_tokens_become_control(files):
    for token in files.tokenizer["added_tokens"]:
        token["special"] = False
    source = SourceTokenizer(files)
    assert [source.types[source.tokens.index(token)] for token in SPECIAL] == [CONTROL] * len(SPECIAL)


def test_gaps_are_padded(files):
    vocab = files.tokenizer["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    gap, vocab[last] = vocab[last], 930
    source = SourceTokenizer(files.write())
    with GGUFFile.open(write_gguf(source, files.folder / "out.gguf", 960)) as written:
        source.verify(written)
        ours = Tokenizer.from_gguf(written)
    assert ours.id_of(last) == 930
    assert ours.unsampleable(960)[[gap, gap + 1, 929, 930, 931, 959]].tolist() == [True, False, True, False, True, True]


def test_a_vocabulary_larger_than_the_model_is_refused(files):
    with pytest.raises(TokenizerError, match=r"has 922 tokens; config\.json's vocab_size is 900"):
        SourceTokenizer(files).add_metadata(gguf.GGUFWriter(None, "llama"), 900)


def set_in(tokenizer: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = [int(key) if key.lstrip("-").isdigit() else key for key in path.split("/")]
    for key in parents:
        tokenizer = tokenizer[key]
    tokenizer[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", None, "has no model"),
        ("model/type", "Unigram", "is a Unigram tokenizer"),
        ("model/byte_fallback", True, "this family has byte-level BPE"),
        ("decoder", None, "with decoder None"),
        ("model/ignore_merges", True, "ignore_merges=True"),
        ("model/end_of_word_suffix", "</w>", "end_of_word_suffix='</w>'"),
        ("normalizer", {"type": "NFC"}, "normalizes text"),
        ("pre_tokenizer", None, "not one of this family's"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁"}, "found: type=Metaspace replacement=▁"),
        ("pre_tokenizer/pretokenizers/1/pattern/Regex", r"\p{L}+", "found: Split"),
        ("pre_tokenizer/pretokenizers/1/behavior", "Removed", "behavior=Removed"),
        ("pre_tokenizer/pretokenizers/4/individual_digits", False, "individual_digits=False"),
        ("pre_tokenizer/pretokenizers/5/use_regex", True, "use_regex=True"),
        ("pre_tokenizer/pretokenizers/5", 7, "found: .*; 7 "),
        ("model/vocab", [], "has no vocabulary"),
        ("model/vocab/!", -1, "has id -1"),
        ("model/vocab/!", 5, "has id 5, expected one of its own"),
        ("model/vocab/!", "x", "has id 'x'"),
        ("model/vocab/!", True, "has id True"),
        ("model/vocab/!", 10**9, "its ids run to 1000000000"),
        ("model/vocab/\ud800", 0, "surrogate|has id 0"),
        ("added_tokens/0", None, "malformed added token"),
        ("added_tokens/0/id", None, "malformed added token"),
        ("added_tokens/0/content", "", "malformed added token"),
        ("added_tokens/0/content", "\ud800", "half a surrogate pair"),
        ("added_tokens/0/lstrip", True, "in a way that GGUF cannot say"),
        ("added_tokens/0/id", 5, "disagree on id 5"),
        ("model/merges", None, "has no merges"),
        ("model/merges/3", "abc", "merge 3 is 'abc'"),
        ("model/merges/3", ["a", "b c"], "merge 3"),
        ("model/merges/3", 3, "merge 3"),
    ],
)
def test_what_gguf_cannot_say_is_refused(files, path, value, message):
    set_in(files.tokenizer, path, value)
    with pytest.raises(TokenizerError, match=message) as caught:
        SourceTokenizer(files)
    assert str(files.tokenizer_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sentencepiece_folder_is_refused(files):
    files.tokenizer_path.unlink()
    (files.folder / "tokenizer.model").write_bytes(b"\x0a\x00")
    with pytest.raises(TokenizerError, match="a SentencePiece tokenizer"):
        SourceTokenizer(files)


def test_a_chat_template_that_is_no_text_is_refused(files):
    files.chat_template = "{{ '\ud800' }}"
    with pytest.raises(TokenizerError, match="chat template holds half a surrogate pair"):
        SourceTokenizer(files)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pre_tokenizer/pretokenizers/1/pattern/Regex", r"\p{L}+", r"after .* has ids"),
        ("pre_tokenizer/pretokenizers/0/pattern/Regex", "[\r\nx]", r"after .* has ids"),
        ("pre_tokenizer/pretokenizers/4/type", "Whitespace", r"after .* has ids"),
        ("model/merges/0", ["!", "!"], "cannot|out of vocabulary"),
        ("added_tokens/0/content", "öö", "has id None|'öö'"),
    ],
)
def test_the_proof_finds_a_difference(files, trained, path, value, message):
    """The file was written from one tokenizer.json, and another lies in the folder."""
    set_in(files.tokenizer, path, value)
    with pytest.raises(TokenizerError, match=message) as caught:
        prove_equal(trained, files.write().tokenizer_path)
    assert "\n" not in str(caught.value)


def test_the_proof_finds_swapped_merges(files, trained):
    merges = files.tokenizer["model"]["merges"]
    files.tokenizer["model"]["merges"] = merges[::-1]
    with pytest.raises(TokenizerError, match=r"after .* has ids"):
        prove_equal(trained, files.write().tokenizer_path)


def test_the_proof_corpus_has_what_sources_have():
    text = "".join(proof_corpus())
    assert 500_000 <= len(text) < 2_000_000
    for needed in ("\r\n", "\t", "\0", "中", "Пр", "👋", "def ", "<|EOT|>", "õ", "١", "\u2028"):
        assert needed in text
