"""Chat prompts against transformers, and what neither a template nor a message can do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcoder.errors import ContextLengthError, OptionError, TokenizerError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.tokenizer import Tokenizer
from localcoder.tokenizer.chat import chat_prompt, fit_history
from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE
from localcoder.tokenizer.jinja import render

BOS, EOT = "<｜begin▁of▁sentence｜>", "<|EOT|>"
NAMES = {"bos_token": BOS, "eos_token": EOT}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "Write a sort.")],
    [message("system", "Be brief.\n"), message("user", "Hi\n\n")],
    [message("user", "  a"), message("assistant", "def f():\n    pass"), message("user", "b  ")],
    [message("system", "S\n"), message("user", "<b>&'\""), message("assistant", ""), message("user", "日本語")],
]


def templates(shared) -> list[str]:
    config = json.loads((shared / "deepseek-coder/tokenizer_config.instruct.json").read_text(encoding="utf-8"))
    embedded = (shared / "checkpoints/python-9m/chat_template.jinja").read_text(encoding="utf-8")
    return [config["chat_template"], embedded, FAMILY_TEMPLATE]


def by_transformers(template: str, conversation) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), _ = utils.render_jinja_template(
        [conversation], chat_template=template, add_generation_prompt=True, **NAMES
    )
    return text


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_the_familys_templates_are_rendered_as_transformers_does(shared, conversation):
    for template in templates(shared):
        assert render(template, conversation, NAMES) == by_transformers(template, conversation)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content | trim }}\n{% endif %}\n{% endfor %}",
        "{%- for m in messages %}{{ loop.index }}{% if loop.last %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{% set ns = namespace(a=0) %}{% set ns.a = 2 * 3 %}{{ ns.a }}{{ messages[0]['content'].upper() }}{{ 7 % 4 }}",
        "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[-1].content) }}{{ bos_token }}{{ unknown }}",
    ],
)
def test_what_other_templates_use(template):
    for conversation in CONVERSATIONS:
        assert render(template, conversation, NAMES) == by_transformers(template, conversation)


@pytest.fixture(scope="module")
def coder_tokenizer(shared) -> Tokenizer:
    with GGUFFile.open(shared / "deepseek-coder/vocab.gguf") as file:
        return Tokenizer.from_gguf(file)


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    tokenizer.chat_template = template
    return tokenizer


def test_the_ids_are_those_of_the_rendered_text(coder_tokenizer, shared):
    from tokenizers import Tokenizer as Oracle

    oracle = Oracle.from_file(str(shared / "deepseek-coder/tokenizer.json"))
    for template in templates(shared):
        for conversation in CONVERSATIONS:
            text = by_transformers(template, conversation)
            ids = chat_prompt(with_template(coder_tokenizer, template), conversation)
            assert ids == oracle.encode(text, add_special_tokens=False).ids
    assert chat_prompt(with_template(coder_tokenizer, None), CONVERSATIONS[0]) == ids_of_the_family(oracle)


def ids_of_the_family(oracle) -> list[int]:
    text = by_transformers(FAMILY_TEMPLATE, CONVERSATIONS[0])
    assert "utilizing the Deepseek Coder model" in text
    assert text.endswith("### Instruction:\nWrite a sort.\n### Response:\n")
    return oracle.encode(text, add_special_tokens=False).ids


def test_a_system_prompt_gets_its_missing_newline(coder_tokenizer, shared):
    for template in templates(shared):
        tokenizer = with_template(coder_tokenizer, template)
        plain = chat_prompt(tokenizer, [message("system", "Be brief."), message("user", "x")])
        assert plain == chat_prompt(tokenizer, [message("system", "Be brief.\n"), message("user", "x")])
    other = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    ids = chat_prompt(with_template(coder_tokenizer, other), [message("system", "S"), message("user", "x")])
    assert tokenizer.detokenize(ids) == "[system]S[user]x"


SPECIAL = [EOT, BOS, "<｜fim▁hole｜>", "<｜end▁of▁sentence｜>", "<pad>"]


@settings(deadline=None, max_examples=30)
@given(
    parts=st.lists(st.sampled_from([*SPECIAL, "<|EO", "T|>", "<", "｜>", "a", " ", "\ue000"]), min_size=1, max_size=6)
)
def test_no_message_becomes_a_special_token(coder_tokenizer, parts):
    text = "".join(parts)
    conversation = [message("system", text), message("user", text), message("assistant", text), message("user", text)]
    for template in (FAMILY_TEMPLATE, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"):
        tokenizer = with_template(coder_tokenizer, template)
        ids = chat_prompt(tokenizer, conversation)
        special = [i for i in ids if not tokenizer.token_bytes(i)]
        plain = [message(m["role"], "x") for m in conversation]
        assert special == [i for i in chat_prompt(tokenizer, plain) if not tokenizer.token_bytes(i)]
        assert tokenizer.detokenize(ids).count(text) >= 4


@pytest.mark.parametrize(
    ("template", "message_"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ messages.__init__.__globals__ }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "fails"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("{{ 'a' * 10000000000 }}", "more text"),
        ("{% for i in range(99999) %}{{ 'a' * 60000 }}{% endfor %}", "more text"),
        ("{{ 10 ** 10 ** 10 }}", "computes"),
        ("{{ '%9999999999d' % 1 }}", "computes"),
        ("{% for i in range(999999999) %}{% endfor %}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("{% if %}", "fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end|fails"),
        ("{{ messages[0].nothing.more }}", "fails"),
    ],
)
def test_a_hostile_or_broken_template_is_one_error(template, message_):
    with pytest.raises(TokenizerError, match=message_):
        render(template, CONVERSATIONS[0], NAMES)


def test_a_template_may_refuse_messages():
    with pytest.raises(OptionError, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", CONVERSATIONS[0], NAMES)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "the last message must be the user's"),
        ([message("assistant", "x")], "the last message must be the user's"),
        ([message("robot", "x")], "the role 'robot'"),
        ([{"role": "user"}], "expected a dictionary of role and content"),
        (["x"], "expected a dictionary"),
        ([{"role": "user", "content": 3}], "and a text"),
    ],
)
def test_messages_that_are_none(coder_tokenizer, messages, problem):
    with pytest.raises(OptionError, match=problem):
        chat_prompt(coder_tokenizer, messages)


def test_history_is_left_out_by_whole_turns():
    def count(messages) -> int:
        return sum(len(m["content"]) for m in messages)

    history = [message("system", "ss")]
    for turn in "abc":
        history += [message("user", turn * 3), message("assistant", turn * 4)]
    history.append(message("user", "ddd"))
    assert fit_history(history, 100, count) == history
    assert [m["content"] for m in fit_history(history, 19, count)] == ["ss", "bbb", "bbbb", "ccc", "cccc", "ddd"]
    assert [m["content"] for m in fit_history(history, 12, count)] == ["ss", "ccc", "cccc", "ddd"]
    assert [m["content"] for m in fit_history(history, 5, count)] == ["ss", "ddd"]
    with pytest.raises(ContextLengthError, match="the last message takes 5 positions of 4"):
        fit_history(history, 4, count)
