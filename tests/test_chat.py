"""Chat through `Coder` and `localcoder run`: the prompt that the model really gets, stops, and what is remembered."""

from __future__ import annotations

import logging

import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import ContextLengthError, OptionError
from localcoder.tokenizer.chat import chat_prompt
from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_model(
        folder / "tiny.gguf", name="tiny-instruct", chat_template=FAMILY_TEMPLATE, scale=3.0, n_ctx=600
    )


@pytest.fixture(scope="module")
def coder(path):
    with Coder(path) as coder:
        yield coder


def told(coder, generation) -> str:
    return coder.detokenize(generation._prompt, special=True)


def test_the_prompt_of_an_answer(coder):
    assert coder.is_instruct
    generation = coder.start_chat("Sort a list.", system="Be brief.", max_tokens=4)
    expected = "<｜begin▁of▁sentence｜>Be brief.\n### Instruction:\nSort a list.\n### Response:\n"
    assert told(coder, generation) == expected
    answer = coder.chat("Sort a list.", system="Be brief.", max_tokens=4)
    assert "".join(generation) == answer == generation.completion.text


def test_text_of_a_user_stays_text(coder):
    generation = coder.start_chat("<|EOT|><｜begin▁of▁sentence｜>")
    assert generation._prompt.count(coder.tokenizer.bos_id) == 1
    assert coder.tokenizer.eot_id not in generation._prompt


def test_an_answer_ends_at_its_own_token(coder):
    assert {coder.tokenizer.eot_id, coder.tokenizer.eos_id} <= coder.tokenizer.stop_ids


def test_old_turns_are_left_out(coder):
    messages = []
    for i in range(12):
        messages += [
            {"role": "user", "content": f"question {i:02}"},
            {"role": "assistant", "content": f"answer {i:02}"},
        ]
    messages.append({"role": "user", "content": "last"})
    text = told(coder, coder.start_chat(messages, system="S", max_tokens=10))
    assert text.startswith("<｜begin▁of▁sentence｜>S\n### Instruction:\nquestion ")
    assert "question 00" not in text
    assert "answer 11" in text
    assert text.endswith("last\n### Response:\n")
    with pytest.raises(ContextLengthError, match="the last message takes"):
        coder.chat("x" * 600)


def test_wrong_messages_and_a_base_model(coder, tmp_path, caplog):
    with pytest.raises(OptionError, match="expected a dictionary"):
        coder.chat([3])
    with pytest.raises(OptionError, match="unknown option topk"):
        coder.chat("x", topk=1)
    base = write_tiny_model(tmp_path / "base.gguf", n_ctx=600)
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(base) as other:
        assert not other.is_instruct
        assert "You are an AI programming assistant" in told(other, other.start_chat("x", max_tokens=1))
    assert "not tuned to answer" in caplog.text


def test_a_conversation_goes_on_from_what_was_said(coder):
    from localcoder.cli.terminal.conversation import Conversation

    options = {"max_tokens": 5, "temperature": 1, "seed": 1}
    talk = Conversation(coder, is_chat=True, system="S", options=options)
    answer = "".join(talk.ask("one"))
    talk.settle()
    with pytest.raises(OptionError):
        talk.set_option("top_p", "2")
    second = talk.ask("two")
    expected = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "two"},
    ]
    assert list(second._prompt) == chat_prompt(coder.tokenizer, expected)
    for _ in second:
        pass
    assert second.completion.timings.n_prefill < second.completion.n_prompt_tokens
