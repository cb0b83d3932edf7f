"""Our streaming GGUF writer against the readers of the `gguf` package, and what it leaves behind when it fails."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from localcoder.errors import OutputError
from localcoder.files import atomic
from localcoder.files.atomic import OutputFile, write_file
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.quants import by_name

SHAPES = {
    "token_embd.weight": ("q8_0", (7, 64)),
    "norm.weight": ("f32", (5,)),
    "a.weight": ("q4_0", (3, 32)),
    "b.weight": ("f16", (2, 3)),
}


def random_tensors():
    rng = np.random.default_rng(0)
    return {
        name: (by_name(kind), by_name(kind).quantize(rng.standard_normal(shape).astype(np.float32)))
        for name, (kind, shape) in SHAPES.items()
    }


def infos():
    return [TensorInfo(name, by_name(kind), shape) for name, (kind, shape) in SHAPES.items()]


def write_all(out: GGUFOutput, n_rows: int = 1) -> None:
    out.metadata.add_block_count(3)
    out.metadata.add_token_list(["a", "｜", "c"])
    out.begin(infos())
    for name, (_, data) in random_tensors().items():
        for start in range(0, len(data), n_rows):
            out.write(name, data[start : start + n_rows])


@pytest.mark.parametrize("alignment", [32, 128])
def test_gguf_reads_what_was_streamed(tmp_path, alignment):
    path = tmp_path / "out.gguf"
    with GGUFOutput(path, "llama") as out:
        out.metadata.add_custom_alignment(alignment)
        write_all(out)
        assert not path.exists()
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(SHAPES)
    with GGUFFile.open(path) as ours:
        for theirs, (name, (qtype, data)) in zip(reader.tensors, random_tensors().items()):
            assert theirs.tensor_type == qtype.gguf_id
            assert theirs.data_offset % alignment == 0
            assert [*reversed(theirs.shape.tolist())] == list(SHAPES[name][1])
            assert theirs.data.tobytes() == data.tobytes() == ours.tensors[name].data.tobytes()
            assert ours.tensors[name].shape == SHAPES[name][1]
    assert reader.fields["llama.block_count"].contents() == 3
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "｜", "c"]
    assert path.stat().st_size % alignment == 0
    assert os.listdir(tmp_path) == [path.name]


def test_finished_file_can_be_checked_before_it_is_moved(tmp_path):
    with GGUFOutput(tmp_path / "out.gguf", "llama") as out:
        write_all(out, n_rows=100)
        out.finish()
        with GGUFFile.open(out.temporary) as file:
            assert file.get_int("llama.block_count") == 3
        assert not (tmp_path / "out.gguf").exists()
    assert os.listdir(tmp_path) == ["out.gguf"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("before", [True, False])
def test_nothing_is_left_after_an_exception(tmp_path, problem, before):
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")

    def interrupted():
        with GGUFOutput(path, "llama") as out:
            if not before:
                write_all(out)
            raise problem

    with pytest.raises(problem):
        interrupted()
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"


def test_incomplete_or_disordered_calls(tmp_path):
    def leave_out_the_last():
        with GGUFOutput(tmp_path / "out.gguf", "llama") as out:
            out.begin(infos())
            for name, (_, data) in list(random_tensors().items())[:-1]:
                out.write(name, data)

    with pytest.raises(ValueError, match=r"b\.weight has not been written"):
        leave_out_the_last()
    with GGUFOutput(tmp_path / "out.gguf", "llama") as out:
        with pytest.raises(ValueError, match="the one to write is none"):
            out.write("a.weight", np.zeros(4, np.uint8))
        write_all(out)
        with pytest.raises(ValueError, match="begin was called before"):
            out.begin([])
    assert os.listdir(tmp_path) == ["out.gguf"]


@pytest.mark.parametrize(
    ("name", "n_bytes", "match"),
    [("a.weight", 4, "the one to write is token"), ("token_embd.weight", 477, "has 476 left")],
)
def test_bytes_that_do_not_fit(tmp_path, name, n_bytes, match):
    def write():
        with GGUFOutput(tmp_path / "out.gguf", "llama") as out:
            out.begin(infos())
            out.write(name, np.zeros(n_bytes, np.uint8))

    with pytest.raises(ValueError, match=match):
        write()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("key", "value"), [("add_block_count", 1 << 40), ("add_name", "half \ud800")])
def test_metadata_that_gguf_cannot_hold(tmp_path, key, value):
    def write():
        with GGUFOutput(tmp_path / "out.gguf", "llama") as out:
            getattr(out.metadata, key)(value)
            out.begin([])

    with pytest.raises(OutputError, match="metadata cannot be written"):
        write()
    assert os.listdir(tmp_path) == []


def refused(path, match, **options):
    with pytest.raises(OutputError, match=match) as caught, GGUFOutput(path, "llama", **options) as out:
        write_all(out)
    assert "\n" not in str(caught.value)


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "is a folder")
    refused(tmp_path / "none" / "out.gguf", "its folder does not exist")
    refused(tmp_path / ("n" * 300), "the name is too long|cannot be written")
    refused(tmp_path / "nul\0", "cannot be written")
    source = tmp_path / "in.gguf"
    source.write_bytes(b"in")
    refused(source, "is the file that is being read", inputs=[source])
    refused(source / "x", "its folder is a file|its folder does not exist")
    assert source.read_bytes() == b"in"
    assert sorted(os.listdir(tmp_path)) == ["folder", "in.gguf"]


@pytest.mark.skipif(os.name != "posix", reason="devices, links and permissions of POSIX")
def test_posix_targets(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a pipe or a device")
    refused("/dev/null", "is a pipe or a device")
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o750)
    (tmp_path / "link").symlink_to(target)
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    if os.geteuid():
        target.chmod(0o400)
        refused(target, "read-only")
        (tmp_path / "closed").mkdir(mode=0o500)
        refused(tmp_path / "closed" / "out", "cannot be written")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_no_room_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: SimpleNamespace(total=1000, free=100))
    refused(tmp_path / "out.gguf", r"takes [\d.]+ MiB and 0\.0 MiB are free")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="file size limits of POSIX")
def test_disk_full(tmp_path):
    """A limit on the size of files stands for the full disk: the write in the middle fails, by the system's doing."""
    script = """
        import resource, sys
        import numpy as np
        from localcoder.errors import OutputError
        from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
        from localcoder.quants import by_name

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with GGUFOutput(sys.argv[1], "llama") as out:
                out.begin([TensorInfo("x", by_name("f32"), (100, 1000))])
                for _ in range(100):
                    out.write("x", np.zeros(4000, np.uint8))
        except OutputError as e:
            print(e)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'out.gguf'}: cannot be written: the file is too large for this file system\n"
    assert os.listdir(tmp_path) == []


def test_error_while_closing(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        write_file(tmp_path / "out", b"x")
    assert os.listdir(tmp_path) == []


def test_error_while_moving(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        write_file(tmp_path / "out", b"x")
    assert os.listdir(tmp_path) == []


def test_new_files_follow_the_umask(tmp_path):
    write_file(tmp_path / "ours", b"x")
    (tmp_path / "theirs").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_two_outputs_of_the_same_name(tmp_path):
    with OutputFile(tmp_path / "x") as first:
        with OutputFile(tmp_path / "x") as second:
            second.write(b"second")
        first.write(b"first")
    assert (tmp_path / "x").read_bytes() == b"first"
