"""The GPT-2 byte alphabet: byte-level BPE writes each byte of the UTF-8 text as one printable character.

Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 and up in order.
"""

from __future__ import annotations

from itertools import count

_PRINTABLE = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_REST = count(256)

ALPHABET = "".join(chr(b) if b in _PRINTABLE else chr(next(_REST)) for b in range(256))
BYTE_OF = {c: b for b, c in enumerate(ALPHABET)}

# These occur in no UTF-8 text, so a vocabulary may do without them (DeepSeek's does).
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
NEEDED = {ALPHABET[b]: b for b in range(256) if b not in _NEVER_IN_UTF8}


def bytes_of(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for.

    One with a character outside the alphabet can come from no text; it stands for its own UTF-8.
    """
    try:
        return bytes([BYTE_OF[c] for c in token])
    except KeyError:
        return token.encode()
