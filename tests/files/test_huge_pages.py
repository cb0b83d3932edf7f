from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from localcoder.errors import OutputError
from localcoder.files.atomic import OutputFile
from localcoder.files.huge_pages import PIECE, PieceWriter


class Recorded(io.FileIO):
    """A file that notes (where, how much) of every write, and takes at most `most` bytes of one."""

    most = 1 << 40

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.writes: list[tuple[int, int]] = []

    def write(self, data):  # type: ignore[no-untyped-def]
        data = memoryview(data)[: self.most]
        self.writes.append((self.tell(), len(data)))
        return super().write(data)


def pieces(n: int) -> list[bytes]:
    random = np.random.default_rng(3)
    data = random.integers(0, 256, n, np.uint8).tobytes()
    cuts = np.sort(random.integers(0, n, 40)).tolist()
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


@pytest.mark.parametrize("at", [0, 5, PIECE - 1, PIECE, PIECE + 1])
@pytest.mark.parametrize("most", [1 << 40, 1_000_003])
def test_everything_arrives_in_whole_pages(at, most, tmp_path):
    path, parts = tmp_path / "file", pieces(7 * PIECE + 12345)
    path.write_bytes(b"x" * at)
    with Recorded(path, "r+b") as file:
        file.most = most
        file.seek(at)
        writer = PieceWriter(file, at)
        for part in parts:
            writer.write(part)
        writer.flush()
    assert path.read_bytes() == b"x" * at + b"".join(parts)
    starts = [where for where, n in file.writes if n]
    if most > PIECE:
        assert all(where % PIECE == 0 for where in starts[1:])
        assert len(starts) <= 10


def test_one_large_piece_is_not_copied(tmp_path):
    with Recorded(tmp_path / "file", "wb") as file:
        writer = PieceWriter(file)
        writer.write(bytes(5 * PIECE + 7))
        writer.flush()
    assert file.writes == [(0, 5 * PIECE), (5 * PIECE, 7)]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def write(self, data):  # type: ignore[no-untyped-def]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PieceWriter, "_write", write)
    with pytest.raises(OutputError, match="the disk is full"), OutputFile(tmp_path / "model.gguf") as out:
        out.write(bytes(3 * PIECE))
    assert list(tmp_path.iterdir()) == []
