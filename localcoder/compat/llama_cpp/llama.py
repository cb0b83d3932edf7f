"""`Llama`, as llama-cpp-python has it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from localcoder.coder import Coder
from localcoder.compat.llama_cpp import constants as c
from localcoder.compat.llama_cpp.arguments import coder_arguments, refuse_unsupported
from localcoder.compat.llama_cpp.chat_formats import FUNCTION_CALLING, plain_messages, template_of, with_functions
from localcoder.compat.llama_cpp.hub import fetch
from localcoder.compat.llama_cpp.llama_grammar import LlamaGrammar, chosen_tool
from localcoder.compat.llama_cpp.llama_tokenizer import LlamaTokenizer
from localcoder.compat.llama_cpp.processors import Hooks
from localcoder.compat.llama_cpp.shapes import (
    Envelope,
    Json,
    LogprobWriter,
    chat_chunks,
    chat_completion,
    tool_chunks,
    tool_completion,
    usage,
)
from localcoder.compat.llama_cpp.stepwise import Stepwise
from localcoder.errors import OptionError
from localcoder.session.generation import Generation
from localcoder.session.sampler import Logprob, logprob_of
from localcoder.tokenizer.chat import chat_prompt, check_messages
from localcoder.tokenizer.infill import infill_prompt

if TYPE_CHECKING:
    from typing_extensions import Self


class Llama(Stepwise):
    """A model, with the arguments and results of llama-cpp-python's class of this name.

    Their documentation says what each argument means; `localcoder.compat.llama_cpp`, which of them change nothing here.
    Beyond theirs, `suffix` really fills a hole, and it is safe for several threads, all but the one text of `eval`,
    `sample` and `generate`.

    Args:
        n_gpu_layers: layers that cards compute, if there are any; below 0: as many as fit.
        chat_format: None (the model's own), "llama-2" or "chatml".

    Attributes:
        model_path: as given.
        metadata: the scalars of the file's metadata, as strings.
        verbose: as given.

    Raises:
        OptionError: an argument out of its range, or for something that localcoder cannot do; it is a ValueError.
        TypeError: an argument that llama-cpp-python does not have either.
        LocalcoderError: the file cannot be used.

    Example:
        >>> from localcoder.coder import embedded_model
        >>> from localcoder.compat.llama_cpp import Llama
        >>> with embedded_model() as path:
        ...     llm = Llama(model_path=str(path), n_ctx=256, verbose=False)
        >>> output = llm("def add(a, b):", max_tokens=8, stop=["\\n\\n"], echo=True)
        >>> output["choices"][0]["text"].startswith("def add(a, b):")
        True
        >>> llm.close()
    """

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        split_mode: int = c.LLAMA_SPLIT_MODE_LAYER,
        main_gpu: int = 0,
        tensor_split: list[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int = c.LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = c.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
        pooling_type: int = c.LLAMA_POOLING_TYPE_UNSPECIFIED,
        attention_type: int = c.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: None = None,
        draft_model: Any = None,
        tokenizer: None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
    ) -> None:
        arguments = dict(locals())
        self.model_path = model_path
        self.verbose = verbose
        self.chat_format = chat_format
        self._template, self._chat_stop = template_of(chat_format)
        self._coder = Coder(**coder_arguments(arguments))
        self._tokenizer = self._coder.tokenizer
        self._pooling = max(pooling_type, c.LLAMA_POOLING_TYPE_NONE)
        self._last_n = last_n_tokens_size if last_n_tokens_size >= 0 else self._coder.n_ctx
        self.n_batch = min(self._coder.n_ctx, n_batch)
        self._keeps_rows = logits_all
        self.set_seed(seed)
        super().__init__()
        metadata = self._coder.engine.file.metadata
        self.metadata = {key: _as_text(value) for key, value in metadata.items() if np.isscalar(value)}

    # --- text and tokens ------------------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text.

        Args:
            add_bos: whether BOS comes first, where the model was trained so.
            special: whether text that spells a special token becomes that token.

        Raises:
            OptionError: it is not UTF-8.
        """
        try:
            decoded = bytes(text).decode()
        except UnicodeDecodeError as error:
            raise OptionError(f"the text is not UTF-8 (byte 0x{text[error.start]:02x} at {error.start})") from None
        return self._tokenizer.tokenize(decoded, bos=None if add_bos else False, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens. `prev_tokens` changes nothing for this family."""
        pieces = (self._tokenizer.token_bytes(t) or self._special(t, special) for t in map(int, tokens))
        return b"".join(pieces)

    def _special(self, token: int, is_shown: bool) -> bytes:
        return self._tokenizer.spelling_of(token).encode() if is_shown else b""

    def tokenizer(self) -> LlamaTokenizer:
        """The tokenizer, as an object of its own."""
        return LlamaTokenizer(self)

    # --- completions ----------------------------------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = (),
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Any:
        """Continues a prompt, or with a `suffix` writes what belongs between the two.

        What spells a special token in a prompt becomes that token, as with llama-cpp-python; not so with a suffix.

        Returns:
            A dictionary of the shape of OpenAI's; with `stream`, an iterator of such.

        Raises:
            OptionError: an argument out of its range, not supported, or a prompt that fills the context.
            ModelError: a suffix for a model that cannot infill.

        Example:
            >>> from localcoder.coder import embedded_model
            >>> with embedded_model() as path:
            ...     llm = Llama(str(path), verbose=False)
            >>> output = llm.create_completion("def area(r):\\n    return ", suffix="\\n", max_tokens=4, temperature=0)
            >>> output["usage"]["completion_tokens"] <= 4
            True
            >>> for chunk in llm.create_completion("import ", max_tokens=4, stream=True):
            ...     print(chunk["choices"][0]["text"], end="", flush=True)  # doctest: +SKIP
        """
        return self._complete(self._prompt_ids(prompt, suffix), prompt, dict(locals()))

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = (),
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """Answers in a conversation. What spells a special token in a message stays text.

        With `tools` and a `tool_choice` that names one of them, the answer is a call of it, with arguments as its
        parameters say; the model is not told of the tools, so say in the messages what is wanted.

        Returns:
            A dictionary of the shape of OpenAI's; with `stream`, an iterator of such.

        Raises:
            OptionError: an argument out of its range, not supported, or a conversation that fills the context.
            TokenizerError: the file's chat template is broken.

        Example:
            >>> from localcoder.coder import embedded_model
            >>> with embedded_model() as path:
            ...     llm = Llama(str(path), verbose=False)
            >>> answer = llm.create_chat_completion([{"role": "user", "content": "Add two numbers."}], max_tokens=4)
            >>> answer["choices"][0]["message"]["role"]
            'assistant'
        """
        a = dict(locals())
        refuse_unsupported(a)
        told = plain_messages(messages)
        check_messages(told)
        tool = chosen_tool(a)
        if self.chat_format == FUNCTION_CALLING:
            told = with_functions(told, tool)
        ids = chat_prompt(self._tokenizer, told, self._template)
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        a.update(stop=(*stops, *self._chat_stop), logprobs=top_logprobs if logprobs else None, echo=False)
        result = self._complete(ids, ids, a)
        if tool is not None:
            return tool_chunks(result, tool["name"]) if stream else tool_completion(result, tool["name"])
        return chat_chunks(result) if stream else chat_completion(result)

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """As `create_chat_completion`, with results of the classes of the package `openai`, which this needs."""
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        result = self.create_chat_completion(*args, **kwargs)
        if kwargs.get("stream"):
            return (ChatCompletionChunk(**chunk) for chunk in result)
        return ChatCompletion(**result)

    def _prompt_ids(self, prompt: str | Sequence[int], suffix: str | None) -> list[int]:
        if suffix is not None:
            prefix = prompt if isinstance(prompt, str) else self._tokenizer.detokenize(prompt)
            return [*infill_prompt(self._tokenizer, prefix, suffix, heal_prefix=False, heal_suffix=False).ids]
        if isinstance(prompt, str):
            return self._tokenizer.tokenize(prompt, parse_special=True)
        return list(prompt)

    def _complete(self, ids: list[int], prompt: str | Sequence[int], a: Mapping[str, Any]) -> Any:
        options = self._options(a, n_prompt=len(ids), max_tokens=a["max_tokens"])
        hooks = Hooks(a["logits_processor"], a.get("stopping_criteria"))
        generation = self._coder.start(ids, hook=hooks or None, **options)
        shown = prompt if isinstance(prompt, str) else self._tokenizer.detokenize(prompt)
        envelope = Envelope(self.model_path if a["model"] is None else a["model"])
        if a["stream"]:
            return self._chunks(generation, hooks, envelope, shown, a["logprobs"] is not None)
        done = generation.run()
        logprobs = None
        if done.logprobs is not None:
            before = self._prompt_logprobs(ids, a["logprobs"]) if a["echo"] else []
            writer = LogprobWriter(self._tokenizer, 0 if a["echo"] else len(shown))
            logprobs = writer.write([*before, *self._of_text(done.logprobs)])
        text = shown + done.text if a["echo"] else done.text
        reason = "stop" if hooks.has_stopped else done.finish_reason
        return {**envelope.completion(text, logprobs, reason), "usage": usage(done)}

    def _chunks(
        self, generation: Generation, hooks: Hooks, envelope: Envelope, shown: str, with_logprobs: bool
    ) -> Iterator[Json]:
        writer, n_written = LogprobWriter(self._tokenizer, len(shown)), 0
        with closing(iter(generation)) as pieces:
            for piece in pieces:
                logprobs = None
                if with_logprobs:
                    records = self._of_text(generation.completion.logprobs or ())
                    logprobs, n_written = writer.write(records[n_written:]), len(records)
                yield envelope.completion(piece, logprobs, None)
        yield envelope.completion("", None, "stop" if hooks.has_stopped else generation.completion.finish_reason)

    def _of_text(self, records: Sequence[Logprob]) -> list[Logprob]:
        """Without the token that says that the text ends."""
        return [record for record in records if record.token not in self._tokenizer.stop_ids]

    def _prompt_logprobs(self, ids: Sequence[int], n: int) -> list[Logprob | int]:
        """The prompt's tokens but BOS; the first is a bare id."""
        start = 1 if ids[0] == self._tokenizer.bos_id else 0
        records: list[Logprob | int] = list(ids[start : start + 1])
        with self._coder.sessions.lend(ids) as session:
            rows = (row for piece in session.score(ids) for row in piece)
            for row, token in list(zip(rows, ids[1:]))[start:]:
                records.append(logprob_of(row, token, n))
        return records

    # --- embeddings -----------------------------------------------------------------------------------------------

    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """Vectors of texts: lists of floats, one for each token, or one for each text with a `pooling_type`.

        Args:
            normalize: whether to scale each to length 1.
            truncate: whether to cut texts to n_batch tokens.
            return_count: whether to return (vectors, number of tokens).

        Raises:
            OptionError: a text of more than n_batch tokens, if it may not be cut.
        """
        texts = [input] if isinstance(input, str) else input
        vectors, n_tokens = [], 0
        for text in texts:
            ids = self.tokenize(text.encode())
            if len(ids) > self.n_batch and not truncate:
                raise OptionError(f"Requested tokens ({len(ids)}) exceed batch size of {self.n_batch}")
            ids = ids[: self.n_batch]
            n_tokens += len(ids)
            states = self._coder.hidden_states(ids)
            pooled = {
                c.LLAMA_POOLING_TYPE_MEAN: states.mean(axis=0, keepdims=True),
                c.LLAMA_POOLING_TYPE_CLS: states[:1],
                c.LLAMA_POOLING_TYPE_LAST: states[-1:],
            }.get(self._pooling, states)
            if normalize:
                pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
            is_pooled = self._pooling != c.LLAMA_POOLING_TYPE_NONE
            vectors.append(pooled[0].tolist() if is_pooled else pooled.tolist())
        found = vectors[0] if isinstance(input, str) else vectors
        return (found, n_tokens) if return_count else found

    def create_embedding(self, input: str | list[str], model: str | None = None) -> Json:
        """As `embed`, in the shape of OpenAI's."""
        texts = [input] if isinstance(input, str) else input
        vectors, n_tokens = self.embed(texts, return_count=True)
        data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)]
        return {
            "object": "list",
            "data": data,
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    # --- the model ------------------------------------------------------------------------------------------------

    def n_ctx(self) -> int:
        """Positions of the context."""
        return self._coder.n_ctx

    def n_embd(self) -> int:
        """Width of an embedding."""
        return self._coder.n_embd

    def n_vocab(self) -> int:
        """Rows of the model's output."""
        return self._coder.n_vocab

    def token_eos(self) -> int:
        """The token that ends a text; -1 if there is none."""
        return _or_none(self._tokenizer.eos_id)

    def token_bos(self) -> int:
        """The token that begins a text; -1 if there is none."""
        return _or_none(self._tokenizer.bos_id)

    def token_nl(self) -> int:
        """The token of a line break; -1 if there is none."""
        ids = self._tokenizer.tokenize("\n", bos=False)
        return ids[0] if len(ids) == 1 else -1

    def pooling_type(self) -> int:
        """How `embed` makes one vector of many: one of LLAMA_POOLING_TYPE_…"""
        return self._pooling

    def set_seed(self, seed: int) -> None:
        """What later draws begin with; LLAMA_DEFAULT_SEED or -1: something else each time."""
        self._random = random.Random(None if seed in (-1, c.LLAMA_DEFAULT_SEED) else seed)

    def set_cache(self, cache: object) -> None:
        """Changes nothing: what prompts share is always kept."""

    def close(self) -> None:
        """Frees the model."""
        self._coder.close()

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> Self:
        """Fetches the one file of a repository on the Hugging Face Hub whose name matches, and opens it.

        Args:
            filename: a name, or a pattern such as "*q8_0.gguf".
            additional_files: more names or patterns to fetch, such as the further parts of a split file.
            local_dir_use_symlinks: changes nothing; the hub's library has dropped it.
            arguments: those of `Llama`.

        Raises:
            OptionError: not exactly one file matches.
        """
        first, *_ = fetch(repo_id, [filename, *(additional_files or ())], local_dir, cache_dir)
        return cls(model_path=first, **arguments)


def _or_none(token: int | None) -> int:
    return -1 if token is None else token


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:f}" if isinstance(value, float) else str(value)
