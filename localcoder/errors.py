"""Every error that localcoder raises on purpose.

LocalcoderError
├── FileError                 a file that cannot be used: the message names it, what was found and what was expected
│   ├── GGUFError             not a GGUF file, damaged, or hostile
│   └── CheckpointError       a Hugging Face checkpoint that cannot be read
├── ModelError                a well-formed file whose model we cannot run (architecture, shapes, missing tensors)
├── TokenizerError            a vocabulary that cannot be built, or text or ids that it cannot represent
├── ContextLengthError        more tokens than the context holds
├── OptionError               an argument out of its range or a name that does not exist
├── BackendError              a backend, device or instruction set that was asked for and is not here
├── HubError              a model that cannot be fetched
├── SandboxError              strangers' programs cannot be run safely here
├── NumericsError             a computation whose result is not finite
└── OutputError               the result cannot be written (disk full, read-only, same file as the input)

The terminal prints any of them on one line and exits with code 2.
"""


class LocalcoderError(Exception):
    """Base of all errors raised by localcoder on purpose."""


class FileError(LocalcoderError):
    """A file that cannot be used.

    `path` is the file; the message always starts with it. Both may quote what a stranger wrote, so the message is made
    printable: one line of bounded length, without control characters.
    """

    def __init__(self, path: object, problem: str) -> None:
        if len(problem) > _MAX_PROBLEM:
            problem = f"{problem[: _MAX_PROBLEM // 2]} … {problem[-_MAX_PROBLEM // 2 :]}"
        super().__init__(printable(f"{path}: {problem}"))
        self.path = str(path)
        self.problem = printable(problem)


_MAX_PROBLEM = 600


def printable(text: str) -> str:
    """`text` with everything that could move a terminal's cursor or hide spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class GGUFError(FileError):
    """Not a GGUF file, or one that is damaged or hostile."""


class CheckpointError(FileError):
    """A Hugging Face checkpoint (config, weights or tokenizer files) that cannot be read."""


class ModelError(FileError):
    """A well-formed file whose model cannot be run."""


class TokenizerError(LocalcoderError):
    """A vocabulary that cannot be built, or ids that it does not have."""


class ContextLengthError(LocalcoderError):
    """More tokens than the context holds."""


class OptionError(LocalcoderError, ValueError):
    """An argument out of its range, or a name that does not exist."""


class BackendError(LocalcoderError):
    """A backend, device or instruction set that was asked for and is not available here."""


class HubError(LocalcoderError):
    """A model that cannot be fetched: no network, no such repository, or other bytes than announced."""

    def __init__(self, problem: str) -> None:
        super().__init__(printable(problem))


class SandboxError(LocalcoderError):
    """Strangers' programs cannot be run safely here."""


class NumericsError(LocalcoderError):
    """A computation whose result is not finite: damaged weights, or a broken kernel."""


class OutputError(FileError):
    """A result that cannot be written."""
