"""The same for asyncio; and how what is wanted no more ends, in threads and in tasks."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tiny_model import write_tiny_model

from localcoder import AsyncCoder, Coder, InfillRequest
from localcoder.errors import OptionError

PROMPT = "def f(x):\n    return "
WARM = {"temperature": 1.0, "seed": 3, "top_k": 0, "top_p": 1.0}


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, n_ctx=4096)
    with Coder(path, n_sequences=4, n_ubatch=16) as coder:
        yield coder


def steps_of(coder, monkeypatch) -> list[int]:
    """Gets a number for each step that is computed from now on."""
    steps = []
    evaluate = coder.engine.evaluate
    monkeypatch.setattr(coder.engine, "evaluate", lambda chunks: steps.append(len(chunks)) or evaluate(chunks))
    return steps


def test_results_are_those_of_the_coder(coder):
    async def main():
        several = AsyncCoder(coder)
        return await asyncio.gather(
            several.complete("a = ", max_tokens=20),
            several.generate("b = ", max_tokens=20),
            several.chat("hello", max_tokens=20),
            several.infill(InfillRequest("x = ", "\n"), max_tokens=20),
            several.choices("c = ", n=2, max_tokens=20, **WARM),
            several.logits([1, 2]),
            several.score("x"),
            several.embed("x"),
        )

    complete, generate, chat, infill, choices, logits, score, embed = asyncio.run(main())
    assert complete == coder.complete("a = ", max_tokens=20)
    assert generate.text == coder.complete("b = ", max_tokens=20)
    assert chat == coder.chat("hello", max_tokens=20)
    assert infill == coder.infill("x = ", "\n", max_tokens=20)
    assert [c.text for c in choices] == [c.text for c in coder.choices("c = ", n=2, max_tokens=20, **WARM)]
    assert (logits == coder.logits([1, 2])).all()
    assert (score == coder.score("x")).all()
    assert (embed == coder.embed("x")).all()


def test_streams(coder):
    async def main():
        several = AsyncCoder(coder)
        return (
            [piece async for piece in several.stream(PROMPT, max_tokens=30)],
            [piece async for piece in several.stream_chat("hello", max_tokens=30)],
        )

    text, answer = asyncio.run(main())
    assert "".join(text) == coder.complete(PROMPT, max_tokens=30)
    assert len(text) > 1
    assert "".join(answer) == coder.chat("hello", max_tokens=30)


def test_errors_come_to_who_awaits(coder):
    async def main():
        several = AsyncCoder(coder)
        with pytest.raises(OptionError, match="top_p"):
            await several.complete("x", top_p=3)
        with pytest.raises(OptionError, match="unknown option"):
            async for _ in several.stream("x", what=3):
                pass
        with pytest.raises(ZeroDivisionError):
            async for _ in several.stream("x", max_tokens=9, on_token=lambda *_: 1 / 0):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("method", ["complete", "chat", "choices"])
def test_a_cancelled_task_ends_before_the_next_step(coder, monkeypatch, method):
    steps = steps_of(coder, monkeypatch)

    async def main():
        several = AsyncCoder(coder)
        prompt = [{"role": "user", "content": "x" * 900}] if method == "choices" else "x" * 900
        task = asyncio.create_task(getattr(several, method)(prompt, max_tokens=3000, **WARM))
        while len(steps) < 5:  # of the prompt's 56 or more
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(steps)

    n_steps = asyncio.run(main())
    assert n_steps < 50
    assert len(steps) == n_steps  # nothing goes on behind the back


def test_leaving_a_stream_ends_it(coder, monkeypatch):
    steps = steps_of(coder, monkeypatch)

    async def main():
        stream = AsyncCoder(coder).stream(PROMPT, max_tokens=3000, **WARM)
        async for _ in stream:
            break
        await stream.aclose()
        return len(steps)

    n_steps = asyncio.run(main())
    assert n_steps < 1000
    assert len(steps) == n_steps


def test_closing_with_the_block(tmp_path):
    async def main():
        async with AsyncCoder(Coder(write_tiny_model(tmp_path / "tiny.gguf"))) as several:
            await several.complete("x", max_tokens=2)
        with pytest.raises(OptionError, match="closed"):
            several.coder.complete("x")

    asyncio.run(main())


def test_cancel_from_another_thread(coder):
    generation = coder.start("x" * 900, max_tokens=3000, **WARM)
    pieces = []
    enough = threading.Event()

    def work():
        for piece in generation:
            pieces.append(piece)
            if len(pieces) == 3:
                enough.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert enough.wait(30)
    generation.cancel()
    thread.join(30)
    done = generation.completion
    assert done.text == "".join(pieces)
    assert done.finish_reason is None
    assert done.n_tokens < 3000


def test_cancelled_before_it_begins(coder, monkeypatch):
    steps = steps_of(coder, monkeypatch)
    generation = coder.start("Q" * 50)
    generation.cancel()
    assert list(generation) == []
    assert steps == []


def test_on_token_hears_every_token(coder):
    heard = []
    text = coder.complete(PROMPT, max_tokens=12, on_token=lambda token, spelled: heard.append((token, spelled)))
    assert coder.detokenize(token for token, _ in heard) == text
    assert len(heard) == 12
    assert "".join(spelled for _, spelled in heard) == text


def test_on_token_can_end_the_text(coder):
    heard = []

    def two(token, spelled):
        heard.append(spelled)
        return len(heard) < 2

    assert coder.complete(PROMPT, max_tokens=12, on_token=two) == "".join(heard)
    assert len(heard) == 2
    with pytest.raises(OptionError, match="on_token is 3; expected a function"):
        coder.complete("x", on_token=3)


def test_an_error_in_on_token_comes_out_and_the_model_stays_usable(coder):
    expected = coder.complete(PROMPT, max_tokens=12)
    with pytest.raises(ZeroDivisionError):
        coder.complete(PROMPT, max_tokens=12, on_token=lambda *_: 1 / 0)
    assert coder.complete(PROMPT, max_tokens=12) == expected
