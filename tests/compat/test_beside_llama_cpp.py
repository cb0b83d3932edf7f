"""The drop-in beside llama-cpp-python itself, on the same file: the same signatures, shapes of results, tokens and
greedy texts; and its documented examples."""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import pickle
import re

import numpy as np
import pytest

import localcoder.compat.llama_cpp as ours
from localcoder.compat.llama_cpp import llama_speculative, llama_tokenizer
from localcoder.compat.llama_cpp.chat_formats import CHAT_FORMATS, FUNCTION_CALLING
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.quants.search import requantize
from localcoder.tokenizer.jinja import render

theirs = pytest.importorskip("llama_cpp")

PROMPTS = ["def add(a, b):", "import os\n\ndef read_lines(path):\n    ", "class Stack:\n    def __init__(self"]
QUESTION = [{"role": "user", "content": "Write a function that adds two numbers."}]


@pytest.fixture(scope="module")
def path(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "python-9m.gguf"
    convert(shared / "checkpoints" / "python-9m", path, Choice(recipe_by_name("f32")), requantize=requantize)
    return path


@pytest.fixture(scope="module")
def both(path):
    options = {"n_ctx": 512, "verbose": False, "logits_all": True, "n_threads": 2}
    pair = ours.Llama(str(path), **options), theirs.Llama(str(path), **options)
    yield pair
    for llm in pair:
        llm.close()


def shape(value):
    """Keys and types, at any depth."""
    if isinstance(value, dict):
        if not all(re.fullmatch(r"\w+", key) for key in value) or "top_logprobs" in value:
            return {key: shape(v) if key != "top_logprobs" else "..." for key, v in value.items()}
        return {key: shape(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(v) for v in value]
    return "float" if isinstance(value, (float, np.floating)) else type(value).__name__


def without_chance(result):
    """A result without what is new each time."""
    return {key: value for key, value in result.items() if key not in ("id", "created")}


@pytest.mark.parametrize(
    "name",
    [
        "__init__",
        "__call__",
        "create_completion",
        "create_chat_completion",
        "generate",
        "tokenize",
        "detokenize",
        "embed",
        "create_embedding",
        "from_pretrained",
        "set_seed",
        "set_cache",
        "eval",
        "sample",
        "reset",
        "save_state",
        "load_state",
    ],
)
def test_signatures(name):
    def parameters(cls):
        found = inspect.signature(getattr(cls, name)).parameters.values()
        empty = inspect.Parameter.empty
        default = {p.name: p.default for p in found if p.kind is not p.VAR_KEYWORD and p.default is not empty}
        return [p.name for p in found if p.kind is not p.VAR_KEYWORD], {
            key: None if value in ([], ()) else value for key, value in default.items()
        }

    names, defaults = parameters(ours.Llama)
    expected_names, expected = parameters(theirs.Llama)
    assert names == expected_names
    assert defaults == {key: None if value == [] else value for key, value in expected.items()}


def test_constants():
    for name in ours.__all__:
        if name.isupper():
            assert getattr(ours, name) == getattr(theirs, name)


def test_tokens(both):
    mine, real = both
    for text in [*PROMPTS, "", "ünï\n\t 日本", "<｜fim▁begin｜>x<|EOT|>"]:
        for add_bos, special in itertools.product((True, False), repeat=2):
            ids = mine.tokenize(text.encode(), add_bos, special)
            assert ids == real.tokenize(text.encode(), add_bos, special)
            assert mine.detokenize(ids, special=special) == real.detokenize(ids, special=special)
    assert mine.tokenizer().encode("x = 1") == real.tokenizer().encode("x = 1")
    assert mine.tokenizer().decode([40, 41]) == real.tokenizer().decode([40, 41])


def test_facts(both):
    mine, real = both
    for name in ("n_ctx", "n_vocab", "n_embd", "token_eos", "token_bos", "token_nl", "pooling_type"):
        assert getattr(mine, name)() == getattr(real, name)(), name
    assert mine.model_path == real.model_path
    assert mine.metadata == real.metadata


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 24},
        {"max_tokens": 24, "echo": True},
        {"max_tokens": 24, "stop": ["\n    "]},
        {"max_tokens": 24, "stop": "self", "echo": True},
        {"max_tokens": 24, "repeat_penalty": 1.3},
        {"max_tokens": 24, "frequency_penalty": 0.7, "presence_penalty": 0.3},
        {"max_tokens": 8, "logit_bias": {40: 50.0}},
        {"model": "mine"},
    ],
)
def test_greedy_completions(both, prompt, options):
    mine, real = (llm.create_completion(prompt, temperature=0, **options) for llm in both)
    assert without_chance(mine) == without_chance(real)
    assert shape(mine) == shape(real)
    called = both[0](prompt, temperature=0, **options)
    assert without_chance(called) == without_chance(mine)


def test_a_prompt_of_tokens(both):
    ids = both[1].tokenize(PROMPTS[0].encode())
    mine, real = (llm(ids, temperature=0) for llm in both)
    assert without_chance(mine) == without_chance(real)


def test_special_tokens_in_a_prompt(both):
    prompt = "<｜fim▁begin｜>def area(r):\n    return <｜fim▁hole｜>\n<｜fim▁end｜>"
    mine, real = (llm(prompt, temperature=0) for llm in both)
    assert without_chance(mine) == without_chance(real)
    infilled = both[0]("def area(r):\n    return ", suffix="\n", temperature=0)
    assert infilled["choices"] == mine["choices"]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("n", [0, 3])
def test_logprobs(both, echo, n):
    mine, real = (llm(PROMPTS[0], max_tokens=8, temperature=0, logprobs=n, echo=echo) for llm in both)
    mine_logprobs, real_logprobs = (result["choices"][0].pop("logprobs") for result in (mine, real))
    assert without_chance(mine) == without_chance(real)
    assert mine_logprobs["tokens"] == real_logprobs["tokens"]
    assert mine_logprobs["text_offset"] == real_logprobs["text_offset"]
    for a, b in zip(mine_logprobs["token_logprobs"], real_logprobs["token_logprobs"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or abs(a - b) < 0.01
    for a, b in zip(mine_logprobs["top_logprobs"], real_logprobs["top_logprobs"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or set(a) == set(b)


@pytest.mark.parametrize("options", [{}, {"stop": ["\n    r"]}, {"logprobs": 2}])
def test_streams(both, options):
    mine, real = (
        list(llm.create_completion(PROMPTS[0], max_tokens=12, temperature=0, stream=True, **options)) for llm in both
    )
    assert "".join(c["choices"][0]["text"] for c in mine) == "".join(c["choices"][0]["text"] for c in real)
    assert mine[-1]["choices"] == real[-1]["choices"]
    assert len({chunk["id"] for chunk in mine}) == 1
    for chunk in mine[:-1]:
        assert shape(chunk) == shape(real[0])
    if not options.get("stop"):
        assert [c["choices"][0]["text"] for c in mine] == [c["choices"][0]["text"] for c in real]


@pytest.mark.parametrize("options", [{}, {"stop": ["\n"]}, {"logprobs": True, "top_logprobs": 2}])
def test_chats(both, options):
    mine, real = (llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0, **options) for llm in both)
    assert shape(mine) == shape(real)
    for result in (mine, real):
        result["choices"][0].pop("logprobs")
    assert without_chance(mine) == without_chance(real)
    assert mine["id"].startswith("chatcmpl-")


def test_streamed_chats(both):
    mine, real = (list(llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0, stream=True)) for llm in both)
    assert [c["choices"] for c in mine] == [c["choices"] for c in real]
    assert shape(mine) == shape(real)


CONVERSATIONS = [
    QUESTION,
    [{"role": "system", "content": "Be brief."}, *QUESTION],
    [*QUESTION, {"role": "assistant", "content": "a + b"}, {"role": "user", "content": "Why?"}],
    [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {"role": "assistant", "content": "a + b"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "What?"},
    ],
]


class Asked(Exception):
    """What their handler of a format asks a model."""

    def create_completion(self, prompt, stop, **_):
        self.prompt, self.stop = prompt, stop
        raise self


def asked_by_theirs(name, messages):
    from llama_cpp import llama_chat_format

    if name == FUNCTION_CALLING:
        with pytest.raises(Asked) as asked:
            llama_chat_format.chatml_function_calling(llama=Asked(), messages=messages)
        return asked.value.prompt, asked.value.stop
    formatter = {"llama-2": "format_llama2", "chatml": "format_chatml"}[name]
    expected = getattr(llama_chat_format, formatter)(messages=messages)
    return expected.prompt, [expected.stop] if expected.stop else []


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_chat_formats(name, messages):
    template, stop = CHAT_FORMATS[name]
    assert (render(template, messages, {}), list(stop)) == asked_by_theirs(name, messages)


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_a_chat_in_another_format(path, name):
    results = []
    for module in (ours, theirs):
        llm = module.Llama(str(path), chat_format=name, verbose=False)
        results.append(llm.create_chat_completion(CONVERSATIONS[1], max_tokens=12, temperature=0))
        llm.close()
    assert without_chance(results[0]) == without_chance(results[1])


def test_openai_classes(both):
    openai = pytest.importorskip("openai")
    mine = both[0].create_chat_completion_openai_v1(QUESTION, max_tokens=4)
    assert isinstance(mine, openai.types.chat.ChatCompletion)
    chunks = list(both[0].create_chat_completion_openai_v1(QUESTION, max_tokens=4, stream=True))
    assert all(isinstance(chunk, openai.types.chat.ChatCompletionChunk) for chunk in chunks)


def test_generate(both):
    def first(llm, n, **options):
        tokens = llm.tokenize(b"Hello, world!")
        return list(itertools.islice(llm.generate(tokens, **options), n))

    assert first(both[0], 30, temp=0.0) == first(both[1], 30, temp=0.0)
    assert len(first(both[0], 30, top_k=40, top_p=0.95, temp=1.0, repeat_penalty=1.0)) == 30


def test_evaluating_and_sampling(both):
    def run(llm):
        llm.reset()
        llm.eval(llm.tokenize(PROMPTS[0].encode()))
        written = []
        for _ in range(8):
            written.append(llm.sample(temp=0.0))
            llm.eval(written[-1:])
        return llm.n_tokens, written, np.array(llm.scores[: llm.n_tokens])

    (n_ours, ours_, rows_ours), (n_theirs, theirs_, rows_theirs) = map(run, both)
    assert (n_ours, ours_) == (n_theirs, theirs_)
    np.testing.assert_allclose(rows_ours, rows_theirs, atol=0.05)
    assert both[0].sample(temp=0.0, idx=3) == rows_ours[3].argmax()


def test_states(both):
    def run(llm):
        llm.reset()
        llm.eval(llm.tokenize(PROMPTS[1].encode()))
        state = pickle.loads(pickle.dumps(llm.save_state()))
        first = list(itertools.islice(llm.generate([5], temp=0.0, reset=False), 6))
        llm.reset()
        llm.eval([7, 8, 9])
        llm.load_state(state)
        assert llm.n_tokens == state.n_tokens
        return first, list(itertools.islice(llm.generate([5], temp=0.0, reset=False), 6))

    (ours_first, ours_again), (theirs_first, _) = map(run, both)
    assert ours_first == ours_again == theirs_first


def test_logits_processors_and_stopping_criteria(both):
    seen = {0: [], 1: []}

    def run(number, llm, module):
        def no_line_breaks(ids, scores):
            seen[number].append(len(ids))
            scores[llm.token_nl()] = -np.inf
            return scores

        def enough(ids, logits):
            return bool(len(ids) >= 30 and logits.shape == (llm.n_vocab(),))

        options = {
            "logits_processor": module.LogitsProcessorList([no_line_breaks]),
            "stopping_criteria": module.StoppingCriteriaList([enough]),
            "max_tokens": 60,
            "temperature": 0,
        }
        whole = llm(PROMPTS[1], **options)
        text = "".join(chunk["choices"][0]["text"] for chunk in llm(PROMPTS[1], stream=True, **options))
        assert text == whole["choices"][0]["text"]
        return text, whole["choices"][0]["finish_reason"], whole["usage"]

    assert run(0, both[0], ours) == run(1, both[1], theirs)
    assert seen[0] == seen[1]


def test_least_tokens(both):
    def run(llm, module):
        tokens = llm.tokenize(b"x = 1\n", add_bos=True)
        processor = module.LogitsProcessorList([module.MinTokensLogitsProcessor(12, llm.token_eos())])
        return list(itertools.islice(llm.generate(tokens, temp=0.0, logits_processor=processor), 12))

    written = run(both[0], ours)
    assert written == run(both[1], theirs)
    assert both[0].token_eos() not in written


@pytest.mark.parametrize("pooling", ["UNSPECIFIED", "NONE", "MEAN", "CLS", "LAST"])
def test_embeddings(path, pooling):
    texts = ["Hello, world!", "def add(a, b):\n    return a + b\n"]
    results = []
    for module in (ours, theirs):
        kind = getattr(module, f"LLAMA_POOLING_TYPE_{pooling}")
        llm = module.Llama(str(path), embedding=True, pooling_type=kind, verbose=False)
        # One by one: of several texts, theirs mixes up the vectors of tokens.
        alone = [llm.create_embedding(text)["data"][0]["embedding"] for text in texts]
        results.append([llm.create_embedding(texts), alone, llm.embed(texts[1], normalize=True)])
        llm.close()
    assert shape(results[0]) == shape(results[1])
    assert results[0][0]["usage"] == results[1][0]["usage"]
    assert [item["embedding"] for item in results[0][0]["data"]] == results[0][1]
    for mine, real in zip(results[0][1], results[1][1], strict=True):
        assert np.linalg.norm(np.array(mine) - np.array(real)) < 0.01 * np.linalg.norm(real)
    assert np.abs(np.array(results[0][2]) - np.array(results[1][2])).max() < 0.01


def documented_examples() -> list[str]:
    """The Python of the section on the high-level API that needs no hub, other models, images or grammars."""
    text = importlib.metadata.metadata("llama-cpp-python").get_payload()
    assert isinstance(text, str)
    section = text.split("## High-level API")[1].split("## OpenAI Compatible Web Server")[0]
    blocks = [b for b in re.findall(r"```python\n(.*?)```", section, re.S) if re.search(r"Llama\(\s*model_path", b)]
    left_out = ("from_pretrained", "chat_handler", "response_format", "tools=")
    return [block for block in blocks if not any(word in block for word in left_out)]


@pytest.mark.parametrize("example", documented_examples())
def test_documented_examples_run_with_another_import_alone(example, path, monkeypatch, capsys):
    name = "localcoder.compat.llama_cpp"
    changed = re.sub(r"^import llama_cpp$", f"import {name} as llama_cpp", example, flags=re.M)
    changed = re.sub(r"^from llama_cpp", f"from {name}", changed, flags=re.M)
    names = []
    for source, module in ((changed, ours), (example, theirs)):
        local = re.sub(r'model_path="[^"]*"', f"model_path={str(path)!r}", source)
        found = {"Llama": module.Llama}
        exec(local, found)
        names.append(found)
    for key in ("output", "embeddings"):
        assert (key in names[0]) == (key in names[1])
        if key in names[0]:
            assert keys(names[0][key]) == keys(names[1][key])
    capsys.readouterr()


def keys(result):
    """As `shape`, where the texts are drawn."""
    if "choices" not in result:
        return shape(result)
    return shape({**result, "choices": [{**c, "finish_reason": None} for c in result["choices"]]})


def test_documented_examples_are_found():
    assert len(documented_examples()) >= 5
    assert llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=10).num_pred_tokens == 10
    assert llama_tokenizer.LlamaTokenizer is not None
