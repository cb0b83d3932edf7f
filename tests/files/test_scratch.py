"""Arrays on the disk that leave nothing behind."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from localcoder.errors import OutputError
from localcoder.files.scratch import ScratchArray


def test_it_gives_back_what_was_written_and_leaves_nothing(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 5, 7)).astype(np.float32)
    with ScratchArray(4, (5, 7), tmp_path) as array:
        array.fill(values)
        assert array.width == 7
        assert np.array_equal(np.stack(list(array)), values)
        array.fill(2 * x for x in array)  # each is read before it is replaced
        assert np.array_equal(array[3], 2 * values[3])
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"missing: cannot take 0.0 MiB of temporary data: No such file"):
        ScratchArray(1, (1, 1), tmp_path / "missing")

    class FullDisk:
        def seek(self, at):
            return at

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    array = ScratchArray(1 << 20, (1, 1 << 10), tmp_path)
    array._file.close()
    monkeypatch.setattr(array, "_file", FullDisk())
    with pytest.raises(OutputError, match=r"cannot take 4,096.0 MiB of temporary data: the disk is full"):
        array.fill([np.zeros((1, 1 << 10), np.float32)])
