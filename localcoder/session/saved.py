"""Sessions on the disk: tokens and their keys and values, so that a prompt need not be computed again after a restart.

A safetensors file: `model` uint8 [32] tells for which model and which format of the cache it is, `tokens` int32 [n],
`pages` uint8 [n_pages, page bytes] as the KV store gives them, `digest` uint8 [32] is the SHA-256 of the two before it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from localcoder.errors import CheckpointError, FileError
from localcoder.files.atomic import OutputFile
from localcoder.files.safetensors_reader import SafetensorsFile
from localcoder.model.engine import Engine
from localcoder.session.session import Session

_SAMPLE_BYTES = 256  # of each end of a tensor, to tell models apart


def fingerprint(engine: Engine) -> bytes:
    """32 bytes that tell the model and the format of its KV cache from others."""
    seen = hashlib.sha256(repr((engine.hyperparameters, engine.kv_shape)).encode())
    for name, tensor in sorted(engine.file.tensors.items()):
        data = tensor.data.reshape(-1)
        seen.update(f"{name} {tensor.qtype.name} {tensor.shape}".encode())
        seen.update(data[:_SAMPLE_BYTES].tobytes() + data[-_SAMPLE_BYTES:].tobytes())
    return seen.digest()


def save_session(path: Path, engine: Engine, session: Session) -> None:
    """Writes a session's timeline.

    Raises:
        OutputError: the file cannot be written.
    """
    tokens = np.array(session.tokens, "<i4")
    n_pages, page_bytes = engine.n_pages(len(tokens)), engine.page_bytes
    sizes = {"model": (32,), "tokens": (len(tokens),), "pages": (n_pages, page_bytes), "digest": (32,)}
    header, at = {}, 0
    for name, shape in sizes.items():
        n_bytes = int(np.prod(shape)) * (4 if name == "tokens" else 1)
        dtype = "I32" if name == "tokens" else "U8"
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(tokens.tobytes())
    with OutputFile(path) as out:
        out.check_space(at)
        out.write(len(text).to_bytes(8, "little") + text + fingerprint(engine) + tokens.tobytes())
        for page in engine.read_pages(session.sequence):
            digest.update(page.tobytes())
            out.write(page.tobytes())
        out.write(digest.digest())


def load_session(path: Path, engine: Engine, session: Session) -> None:
    """Gives a new session the timeline of a file.

    Raises:
        FileError: it is no saved session, a damaged one, or that of another model.
        ContextLengthError: it is longer than the context, or the cache is full.
    """
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        raise FileError(path, f"no saved session: {error.problem}") from None
    try:
        found = {name: (tensor.dtype, tensor.shape) for name, tensor in file.tensors.items()}
        n_tokens = found.get("tokens", ("", (0,)))[1][0] if len(found.get("tokens", ("", ()))[1]) == 1 else 0
        expected = {
            "model": ("u8", (32,)),
            "tokens": ("i32", (n_tokens,)),
            "pages": ("u8", (engine.n_pages(n_tokens), engine.page_bytes)),
            "digest": ("u8", (32,)),
        }
        if "model" not in found or set(found) != set(expected):
            raise FileError(path, f"no saved session: it holds {', '.join(sorted(found)[:5])}")
        if file.tensors["model"].data.tobytes() != fingerprint(engine):
            raise FileError(path, "a session of another model, or of another type of KV cache")
        if found != expected:
            raise FileError(path, "damaged: its parts do not have the sizes that belong together")
        data = {name: tensor.data for name, tensor in file.tensors.items()}
        digest = hashlib.sha256(data["tokens"].tobytes())
        for page in data["pages"].reshape(-1, engine.page_bytes):
            digest.update(page.tobytes())
        tokens = np.frombuffer(data["tokens"].tobytes(), "<i4")
        in_vocabulary = not len(tokens) or (tokens.min() >= 0 and tokens.max() < engine.n_vocab)
        if digest.digest() != data["digest"].tobytes() or not in_vocabulary:
            raise FileError(path, "damaged: its contents do not match their digest")
        session.restore(tokens.tolist(), list(data["pages"].reshape(-1, engine.page_bytes)))
    finally:
        file.close()
