"""A model's logits over a text, kept in a file, so that the model itself is not needed again.

A safetensors file (https://github.com/huggingface/safetensors#format) with two tensors: `chunks`, int32 [n_chunks,
n_ctx], the tokens; and `logits`, float32 [n_chunks, n_scored, n_vocab], for the second half of each chunk, where
`perplexity.py` scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import FileError
from localcoder.files.atomic import OutputFile
from localcoder.files.safetensors_reader import SafetensorsFile
from localcoder.measure.perplexity import MIN_CTX, ScoredPiece, n_scored, scored_slices


class LogitsWriter:
    """Writes such a file piece by piece; a context manager. It appears when the block ends without an exception.

    Args:
        chunks: int32 [n_chunks, n_ctx].
        inputs: files that are being read, which must not be replaced.

    Raises (all methods):
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, chunks: NDArray[np.int32], n_vocab: int, *, inputs: Sequence[Path] = ()) -> None:
        self._file = OutputFile(path, inputs=inputs)
        self._chunks = np.ascontiguousarray(chunks, "<i4")
        self._shape = (len(chunks), n_scored(chunks.shape[1]), n_vocab)

    def __enter__(self) -> LogitsWriter:
        n_token_bytes = self._chunks.nbytes
        n_bytes = n_token_bytes + 4 * math.prod(self._shape)
        tables = {
            "chunks": {"dtype": "I32", "shape": self._chunks.shape, "data_offsets": [0, n_token_bytes]},
            "logits": {"dtype": "F32", "shape": self._shape, "data_offsets": [n_token_bytes, n_bytes]},
        }
        header = json.dumps(tables).encode()
        header += b" " * (-len(header) % 8)
        self._file.__enter__()
        try:
            self._file.check_space(n_bytes)
            self._file.write(len(header).to_bytes(8, "little") + header)
            self._file.write(self._chunks.tobytes())
        except BaseException as e:
            self._file.__exit__(type(e))
            raise
        return self

    def add(self, piece: ScoredPiece) -> None:
        """Appends the logits of the positions that come next."""
        self._file.write(np.ascontiguousarray(piece.logits, "<f4").tobytes())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.__exit__(kind)


def saving(pieces: Iterator[ScoredPiece], writer: LogitsWriter) -> Iterator[ScoredPiece]:
    """Passes the pieces on, each when it is written."""
    for piece in pieces:
        writer.add(piece)
        yield piece


class SavedLogits:
    """Such a file, opened; a context manager.

    Attributes:
        path: the file.
        chunks: int32 [n_chunks, n_ctx].
        logits: float32 [n_chunks, n_scored, n_vocab], a view of the mapped file.

    Raises:
        FileError: the file is not there, damaged, or something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        try:
            self.chunks, self.logits = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        tensors = self._file.tensors
        found = {name: (t.dtype, len(t.shape)) for name, t in tensors.items()}
        if found != {"chunks": ("i32", 2), "logits": ("f32", 3)}:
            raise FileError(self.path, "these are not logits that `localcoder perplexity --save-logits` wrote")
        chunks = tensors["chunks"].data.view("<i4").reshape(tensors["chunks"].shape)
        logits = tensors["logits"].data.view("<f4").reshape(tensors["logits"].shape)
        n_chunks, n_ctx = tensors["chunks"].shape
        n_vocab = tensors["logits"].shape[2]
        if n_chunks < 1 or n_ctx < MIN_CTX or tensors["logits"].shape != (n_chunks, n_scored(n_ctx), n_vocab):
            raise FileError(self.path, f"logits of shape {logits.shape} do not belong to chunks of {chunks.shape}")
        if chunks.min() < 0 or chunks.max() >= n_vocab:
            raise FileError(self.path, f"holds token ids outside its vocabulary of {n_vocab}")
        return chunks, logits

    def pieces(self) -> Iterator[ScoredPiece]:
        """What `scored_pieces` would give for the model."""
        for number, (chunk, logits) in enumerate(zip(self.chunks, self.logits)):
            first = len(chunk) // 2
            for _, scored in scored_slices(len(chunk)):
                if scored.stop > scored.start:
                    rows = logits[scored.start - first : scored.stop - first]
                    yield ScoredPiece(number, rows, chunk[scored.start + 1 : scored.stop + 1])

    def close(self) -> None:
        """Unmaps the file as soon as no view of it is left."""
        self.chunks = self.logits = np.empty(0)  # type: ignore[assignment]
        self._file.close()

    def __enter__(self) -> SavedLogits:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
