"""`AsyncCoder`: a `Coder` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from localcoder.coder import Coder
from localcoder.quants.spec import Float32
from localcoder.session.generation import Completion, Generation
from localcoder.session.infill import InfillRequest
from localcoder.session.options import GenerationArguments
from localcoder.session.readings import Pooling
from localcoder.session.sampler import Float64
from localcoder.tokenizer.chat import Message

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

N_THREADS = 64  # calls at the same time; they take turns to compute
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Parameters = ParamSpec("Parameters")


class Runnable(Protocol[Result_co]):
    """A generation, an infill, or several texts at once."""

    def run(self) -> Result_co: ...

    def cancel(self) -> None: ...


class AsyncCoder:
    """The methods of a `Coder` as coroutines: they work in threads, so that the event loop stays free.

    Any number of them may run at the same time. Cancelling one (`asyncio.wait_for`, `task.cancel()`, leaving an
    `async for` early) ends its computing before the next step.

    Args:
        coder: closed at the end of the `async with` block.

    Attributes:
        coder: what does the work; it may also be used directly.

    Example:
        >>> import asyncio
        >>> from localcoder import AsyncCoder, Coder
        >>> async def main():
        ...     async with AsyncCoder(Coder()) as coder:
        ...         return await asyncio.gather(
        ...             coder.complete("def add(a, b):", max_tokens=4), coder.complete("import ", max_tokens=4)
        ...         )
        >>> len(asyncio.run(main()))
        2
    """

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._threads = ThreadPoolExecutor(N_THREADS, thread_name_prefix="localcoder")

    async def complete(self, prompt: str | Sequence[int], **options: Unpack[GenerationArguments]) -> str:
        """As `Coder.complete`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.complete("x = ", max_tokens=4)
            >>> isinstance(asyncio.run(main()), str)
            True
        """
        return (await self.generate(prompt, **options)).text

    async def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationArguments]) -> Completion:
        """As `Coder.generate`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.generate("x = ", max_tokens=2)
            >>> asyncio.run(main()).finish_reason
            'length'
        """
        return await self.run(await self._call(self.coder.start, prompt, **options))

    async def stream(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationArguments]
    ) -> AsyncGenerator[str, None]:
        """As `Coder.stream`; a wrong argument raises at the first piece.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return [piece async for piece in coder.stream("for i in ", max_tokens=4)]
            >>> len(asyncio.run(main())) <= 4
            True
        """
        generation = await self._call(self.coder.start, prompt, **options)
        async for piece in self.pieces(generation):
            yield piece

    async def chat(
        self, messages: str | Sequence[Message], *, system: str | None = None, **options: Unpack[GenerationArguments]
    ) -> str:
        """As `Coder.chat`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.chat("Add two numbers.", max_tokens=4)
            >>> isinstance(asyncio.run(main()), str)
            True
        """
        started = await self._call(self.coder.start_chat, messages, system=system, **options)
        return (await self.run(started)).text

    async def stream_chat(
        self, messages: str | Sequence[Message], *, system: str | None = None, **options: Unpack[GenerationArguments]
    ) -> AsyncGenerator[str, None]:
        """As `chat`, but yields the answer piece by piece.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return [piece async for piece in coder.stream_chat("Add two numbers.", max_tokens=4)]
            >>> len(asyncio.run(main())) <= 4
            True
        """
        generation = await self._call(self.coder.start_chat, messages, system=system, **options)
        async for piece in self.pieces(generation):
            yield piece

    async def infill(self, request: InfillRequest, **options: Unpack[GenerationArguments]) -> str:
        """As `Coder.infill`, of an `InfillRequest`.

        Example:
            >>> from localcoder import InfillRequest
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.infill(InfillRequest("def area(r):\\n    return ", "\\n", scope="line"))
            >>> "\\n" in asyncio.run(main())
            False
        """
        return (await self.run(await self._call(self.coder.start_infill, request, **options))).text

    async def choices(
        self,
        prompt: str | Sequence[Message],
        *,
        n: int = 1,
        best_of: int | None = None,
        **options: Unpack[GenerationArguments],
    ) -> list[Completion]:
        """As `Coder.choices`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.choices("x = ", n=2, temperature=1.0, max_tokens=4)
            >>> len(asyncio.run(main()))
            2
        """
        return await self.run(await self._call(self.coder.start_choices, prompt, n=n, best_of=best_of, **options))

    async def logits(self, token_ids: Iterable[int]) -> Float32:
        """As `Coder.logits`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.logits([1, 2])
            >>> asyncio.run(main()).shape[0]
            2
        """
        return await self._call(self.coder.logits, token_ids)

    async def score(self, text: str, *, prompt: str = "") -> Float64:
        """As `Coder.score`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.score("x = 1")
            >>> len(asyncio.run(main())) > 0
            True
        """
        return await self._call(self.coder.score, text, prompt=prompt)

    async def hidden_states(self, token_ids: Iterable[int], *, n_layer: int | None = None) -> Float32:
        """As `Coder.hidden_states`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.hidden_states([1, 2])
            >>> asyncio.run(main()).shape[0]
            2
        """
        return await self._call(self.coder.hidden_states, token_ids, n_layer=n_layer)

    async def embed(self, text: str | Sequence[str], *, pooling: Pooling = "mean", normalize: bool = True) -> Float32:
        """As `Coder.embed`.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.embed(["x = 1", "y = 1"])
            >>> asyncio.run(main()).shape[0]
            2
        """
        return await self._call(self.coder.embed, text, pooling=pooling, normalize=normalize)

    async def close(self) -> None:
        """As `Coder.close`."""
        await self._call(self.coder.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    async def run(self, work: Runnable[Result]) -> Result:
        """The result of what `start`, `start_chat`, `start_infill` or `start_choices` of the coder have begun.

        If the coroutine is cancelled, the work is, too, and it has ended when the coroutine has.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         return await coder.run(coder.coder.start("x = ", max_tokens=4))
            >>> asyncio.run(main()).n_tokens <= 4
            True
        """
        running = asyncio.get_running_loop().run_in_executor(self._threads, work.run)
        try:
            return await asyncio.shield(running)
        finally:
            if not running.done():
                work.cancel()
                await _ended(running)

    async def pieces(self, generation: Generation) -> AsyncGenerator[str, None]:
        """The pieces of text of a generation that `start` or `start_chat` of the coder have begun.

        Example:
            >>> async def main():
            ...     async with AsyncCoder(Coder()) as coder:
            ...         generation = coder.coder.start("x = ", max_tokens=4)
            ...         return [piece async for piece in coder.pieces(generation)], generation.completion
            >>> pieces, done = asyncio.run(main())
            >>> "".join(pieces) == done.text
            True
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def run() -> None:
            try:
                for piece in generation:
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, None)

        running = loop.run_in_executor(self._threads, run)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await running
        finally:
            generation.cancel()
            await _ended(running)


async def _ended(running: asyncio.Future[Any]) -> None:
    """Waits for the end of a call whose result nobody wants any more."""
    await asyncio.wait([running])
    if not running.cancelled():
        running.exception()
