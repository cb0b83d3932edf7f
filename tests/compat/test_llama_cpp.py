"""The drop-in for llama-cpp-python: what it accepts and refuses, and its results, without the real one."""

from __future__ import annotations

import doctest
import sys
import types

import pytest
from tiny_model import write_tiny_model

import localcoder.compat.llama_cpp.llama
from localcoder import Coder
from localcoder.coder import embedded_model
from localcoder.compat.llama_cpp import Llama
from localcoder.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from localcoder.errors import ModelError, OptionError

PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def path():
    with embedded_model() as path:
        yield path


@pytest.fixture(scope="module")
def llm(path):
    llm = Llama(str(path), verbose=False)
    yield llm
    llm.close()


def test_examples():
    failed, tried = doctest.testmod(localcoder.compat.llama_cpp.llama)
    assert tried >= 8
    assert not failed


def test_unknown_arguments_are_errors(path, llm):
    with pytest.raises(TypeError, match="n_gpu_layer"):
        Llama(str(path), n_gpu_layer=1)
    with pytest.raises(TypeError, match="max_token"):
        llm(PROMPT, max_token=3)
    with pytest.raises(TypeError, match="best_of"):
        llm.create_chat_completion([{"role": "user", "content": "x"}], best_of=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_only", True),
        ("tensor_split", [0.5, 0.5]),
        ("kv_overrides", {"a": 1}),
        ("rope_freq_base", 10000.0),
        ("rope_freq_scale", 0.5),
        ("rope_scaling_type", 2),
        ("yarn_ext_factor", 1.0),
        ("yarn_orig_ctx", 1024),
        ("attention_type", 1),
        ("pooling_type", 4),
        ("lora_path", "x"),
        ("chat_handler", print),
        ("chat_format", "functionary"),
        ("tokenizer", object()),
        ("spm_infill", True),
        ("type_k", 0),
        ("draft_model", lambda ids: ids),
    ],
)
def test_what_cannot_be_honoured_is_refused(path, name, value):
    with pytest.raises(OptionError, match=name):
        Llama(str(path), **{name: value})


def test_one_type_of_cache(path):
    with pytest.raises(OptionError, match="type_k and type_v"):
        Llama(str(path), type_k=8)
    llm = Llama(str(path), type_k=8, type_v=8, n_ctx=64)
    assert llm._coder.engine.kv_type == "q8_0"
    llm.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stopping_criteria", 3),
        ("logits_processor", ["x"]),
        ("grammar", object()),
        ("tfs_z", 0.5),
        ("mirostat_mode", 1),
        ("temperature", "hot"),
        ("top_p", 3),
        ("stop", [""]),
        ("logprobs", -1),
    ],
)
def test_a_completion_refuses_what_it_cannot_do(llm, name, value):
    with pytest.raises(OptionError, match=name):
        llm.create_completion(PROMPT, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{}]),
        ("tool_choice", "auto"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", "json_object"),
    ],
)
def test_a_chat_refuses_what_it_cannot_do(llm, name, value):
    with pytest.raises(OptionError, match=name):
        llm.create_chat_completion([{"role": "user", "content": "x"}], **{name: value})


def test_what_only_says_how_to_compute_changes_nothing(path, llm):
    other = Llama(
        str(path),
        n_gpu_layers=-1,
        split_mode=0,
        use_mmap=False,
        use_mlock=True,
        n_threads=1,
        n_threads_batch=2,
        n_batch=16,
        logits_all=True,
        flash_attn=True,
        numa=True,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=2),
        verbose=False,
    )
    assert other(PROMPT, temperature=0)["choices"] == llm(PROMPT, temperature=0)["choices"]
    other.close()


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="Model path does not exist"):
        Llama(str(tmp_path / "none.gguf"))


def test_a_prompt_that_fills_the_context(path):
    llm = Llama(str(path), n_ctx=16)
    with pytest.raises(ValueError, match=r"Requested tokens \(\d+\) exceed context window of 16"):
        llm("x = 1\n" * 10)
    assert llm("x = ", max_tokens=None, temperature=0)["usage"]["total_tokens"] <= 16
    llm.close()


def test_a_suffix_is_really_infilled(path, llm):
    output = llm.create_completion("def area(r):\n    return ", suffix="\n", max_tokens=8, temperature=0)
    with Coder(path) as coder:
        from localcoder.tokenizer.infill import infill_prompt

        prompt = infill_prompt(coder.tokenizer, "def area(r):\n    return ", "\n", heal_prefix=False, heal_suffix=False)
        assert output["choices"][0]["text"] == coder.complete(prompt.ids, max_tokens=8)


def test_a_model_that_cannot_infill(tmp_path):
    llm = Llama(str(write_tiny_model(tmp_path / "tiny.gguf", special_tokens=False)))
    with pytest.raises(ModelError, match="cannot infill"):
        llm("a", suffix="b")


def test_seeds(path):
    def texts(seed):
        llm = Llama(str(path), seed=seed, verbose=False)
        found = [llm(PROMPT, temperature=1.5)["choices"][0]["text"] for _ in range(3)]
        assert llm(PROMPT, temperature=1.5, seed=5)["choices"] == llm(PROMPT, temperature=1.5, seed=5)["choices"]
        llm.close()
        return found

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) > 1
    assert texts(-1) != texts(-1)


def test_only_text_in_messages(llm):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    joined, plain = (
        llm.create_chat_completion([{"role": "user", "content": c}], max_tokens=4, temperature=0) for c in (parts, "ab")
    )
    assert joined["choices"] == plain["choices"]
    with pytest.raises(OptionError, match="reads text only"):
        llm.create_chat_completion([{"role": "user", "content": [{"type": "image_url"}]}])


def test_text_of_a_message_is_never_a_special_token(llm):
    ids = llm.tokenize("<｜fim▁begin｜>".encode(), add_bos=False, special=True)
    assert len(ids) == 1
    plain = len(llm.tokenize("<｜fim▁begin｜>".encode(), add_bos=False))
    with_it, without = (
        llm.create_chat_completion([{"role": "user", "content": f"a {x} b"}], max_tokens=1)["usage"]["prompt_tokens"]
        for x in ("<｜fim▁begin｜>", "")
    )
    assert with_it - without >= plain - 2


def test_wrong_bytes(llm):
    with pytest.raises(OptionError, match="not UTF-8"):
        llm.tokenize(b"\xff")


class FakeHub(types.ModuleType):
    def __init__(self, path):
        super().__init__("huggingface_hub")
        self.path, self.asked = path, []

    def HfApi(self):
        return types.SimpleNamespace(list_repo_files=lambda repo: ["README.md", "a-q4_0.gguf", "a-q8_0.gguf"])

    def hf_hub_download(self, repo, name, **folders):
        self.asked.append((repo, name, folders))
        return str(self.path)


def test_from_pretrained(path, monkeypatch, tmp_path):
    hub = FakeHub(path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    llm = Llama.from_pretrained(repo_id="a/b", filename="*q8_0.gguf", local_dir=tmp_path, verbose=False, n_ctx=64)
    assert hub.asked == [("a/b", "a-q8_0.gguf", {"local_dir": str(tmp_path)})]
    assert llm.n_ctx() == 64
    llm.close()
    with pytest.raises(OptionError, match=r"2 files of a/b match '\*.gguf'"):
        Llama.from_pretrained("a/b", "*.gguf")


def test_a_closed_model_computes_nothing(path):
    llm = Llama(str(path), verbose=False)
    llm.eval([1, 2])
    llm.close()
    for use in (lambda: llm(PROMPT), lambda: llm.eval([3]), llm.save_state, lambda: next(llm.generate([1]))):
        with pytest.raises(OptionError, match="is closed"):
            use()
