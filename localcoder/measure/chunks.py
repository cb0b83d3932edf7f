"""Cutting a text's token ids into the chunks that models are measured and calibrated on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import OptionError


def cut_chunks(tokens: Sequence[int], chunk_size: int, bos_id: int | None) -> NDArray[np.int32]:
    """A text's ids as int32 [n_chunks, chunk_size]; the rest of the text is left out.

    Args:
        bos_id: what each chunk's first token is replaced with; None: nothing.

    Raises:
        OptionError: the text is shorter than one chunk.
    """
    n_chunks = len(tokens) // chunk_size
    if n_chunks == 0:
        raise OptionError(
            f"the text has {len(tokens)} tokens; one chunk takes {chunk_size}: use a longer text or less n_ctx"
        )
    chunks = np.array(tokens[: n_chunks * chunk_size], np.int32).reshape(n_chunks, chunk_size)
    if bos_id is not None:
        chunks[:, 0] = bos_id
    return chunks
