"""Torch checkpoints: what torch.save wrote is read equal; what asks for anything but tensors is refused and not run."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from torch_archive import VALUES, archive, integer, pickled_dict, pickled_tensor, write_archive

from localcoder.errors import CheckpointError
from localcoder.files import torch_pickle, torch_reader
from localcoder.files.checkpoint import Checkpoint
from localcoder.files.torch_reader import TorchFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-was-run"


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        TorchFile(path)
    assert str(caught.value).isprintable()


# -- what torch writes


def state_dict():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    tensors = OrderedDict(
        f32=torch.randn(3, 5),
        f16=torch.randn(3, 5).half(),
        bf16=torch.randn(7, 2).bfloat16(),
        parameter=torch.nn.Parameter(torch.randn(4)),
        shared=base,
        a_slice_of_shared=base[2:5],
        tied=base,
        cube=torch.randn(2, 3, 4),
        a_row=torch.randn(1, 4).t().contiguous().t(),  # stride of the first axis is arbitrary
    )
    tensors["with_attribute"] = torch.nn.Parameter(torch.randn(2))
    tensors["with_attribute"].note = 1
    tensors._metadata = OrderedDict({"": {"version": 1}})
    return tensors


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saved_is_read_equal(path, protocol):
    torch = pytest.importorskip("torch")
    tensors = state_dict()
    torch.save(
        {**tensors, "epoch": 3, "ids": torch.arange(4), "loss": 0.5, "note": "ü"}, path, pickle_protocol=protocol
    )
    read = TorchFile(path).tensors
    assert list(read) == [*tensors, "ids"]
    for name, expected in tensors.items():
        assert read[name].shape == tuple(expected.shape)
        whole = read[name].rows(0, len(expected))
        np.testing.assert_array_equal(whole, expected.detach().float().numpy())
        np.testing.assert_array_equal(read[name].rows(1, len(expected)), whole[1:])
    with pytest.raises(CheckpointError, match="tensor ids is i64"):
        read["ids"].rows(0, 1)


def test_state_dict_with_its_metadata_and_shards(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    weights = module.state_dict()
    names = list(weights)
    for i, part in enumerate((names[:1], names[1:])):
        torch.save(OrderedDict((name, weights[name]) for name in part), tmp_path / f"part-{i}.bin")
    weight_map = {name: f"part-{int(i > 0)}.bin" for i, name in enumerate(names)}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin.index.json").write_text(str({"weight_map": weight_map}).replace("'", '"'))
    with Checkpoint.open(tmp_path) as checkpoint:
        for name in names:
            tensor = checkpoint.tensors[name]
            np.testing.assert_array_equal(tensor.rows(0, tensor.shape[0]), weights[name].numpy())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == names


def test_not_contiguous(path):
    torch = pytest.importorskip("torch")
    for tensor in (torch.randn(3, 4).t(), torch.randn(1, 4).expand(3, 4), torch.randn(4, 4)[:, :2]):
        torch.save({"x": tensor}, path)
        refused(path, "tensor x is not contiguous")


def test_old_format(path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    refused(path, "in the format of before torch 1.6; load and save it once")


def test_our_archives_are_torch_archives(path):
    """The archives that the tests below damage are read by torch, so the damage is the only thing wrong with them."""
    torch = pytest.importorskip("torch")
    write_archive(path, pickled_dict(x=pickled_tensor((2, 3))))
    np.testing.assert_array_equal(
        torch.load(path, weights_only=True)["x"].numpy(), TorchFile(path).tensors["x"].rows(0, 2)
    )


def test_archives_of_more_than_4_gib_keep_their_sizes_elsewhere(path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 8)
    write_archive(path, pickled_dict(x=pickled_tensor((2, 3))))
    assert b"PK\x06\x06" in path.read_bytes()  # the larger directory record is there
    np.testing.assert_array_equal(TorchFile(path).tensors["x"].rows(0, 2), VALUES.reshape(2, 3))


# -- code in pickles


class Calls:
    """Pickles as a call of `function` with `arguments`, and a state."""

    def __init__(self, function, *arguments, state=None):
        self._reduced = (function, arguments, state)

    def __reduce__(self):
        return self._reduced


def pickled_calls(marker: Path) -> dict[str, object]:
    import os

    command = f"echo > {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, code),
        "exec in a tensor's place": {"x": [Calls(exec, code)]},
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "argument of OrderedDict": Calls(OrderedDict, [("x", Calls(eval, code))]),
        "state": Calls(OrderedDict, state={"x": Calls(eval, code)}),
        "a class": {"x": io.BytesIO},
        "an instance": Path("x"),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", pickled_calls(Path()))
def test_code_is_not_run(path, marker, name, protocol):
    write_archive(path, pickle.dumps(pickled_calls(marker)[name], protocol))
    refused(path, "which is no part of a tensor|which no tensor needs|in a way that torch does not")
    assert not marker.exists()


HAND_MADE = {
    "INST": b"(S'echo > marker'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'x'\no.",
    "NEWOBJ of OrderedDict": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pabc\n.",
    "STACK_GLOBAL of no text": b"\x80\x04NN\x93.",
    "dotted name": b"\x80\x04\x8c\x0btorch._utils\x8c\x1c_rebuild_tensor_v2.__globals__\x93.",
    "hook of a module": b"ctorch._utils\n_rebuild_wrapper_subclass\n.",
    "type of a tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n.",
    "state of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "state of a class": b"\x80\x02ctorch\nFloatStorage\n}b.",
    "call of a storage": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "call of a number": b"\x80\x02K\x01)R.",
    "arguments are no tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "too few arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "parameter of a number": b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
    "empty": b"",
    "only the end": b".",
    "ends early": b"\x80\x02}",
    "no dictionary": b"\x80\x02K\x01.",
    "pop below a mark": b"\x80\x02]K\x01(a.",
    "mark missing": b"\x80\x02t.",
    "never made": b"\x80\x02h\x07.",
    "items without values": b"\x80\x02}(K\x01u.",
    "item of a number": b"\x80\x02K\x01K\x01K\x01s.",
    "append to a dictionary": b"\x80\x02}K\x01a.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "key nested 100,000 deep": b"\x80\x02})" + 100_000 * b"\x85" + b"K\x01s.",
    "result nested 100,000 deep": b"\x80\x02)" + 100_000 * b"\x85" + b".",
    "2**63 characters": b"\x80\x04\x8d" + (1 << 63).to_bytes(8, "little") + b".",
    "2**31 digits": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "100,000 digits": b"L" + b"9" * 100_000 + b"L\n.",
    "memo of 2**32": b"\x80\x02Nr\xff\xff\xff\xff.",
    "text is not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "line without end": b"cos",
    "a million instructions": b"\x80\x02" + 1_000_000 * b"N" + b".",
    "a hundred thousand marks": b"\x80\x02" + 100_000 * b"(" + b"t.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "control characters": b"cos\x1b[31m\nsystem\n.",
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_pickles(path, name):
    write_archive(path, HAND_MADE[name])
    refused(path, r"data\.pkl")


def test_no_other_name_can_be_added_by_chance():
    """Whoever adds a name to the allowed list has to come here and think about what it can do."""
    assert set(torch_pickle._CALLS) == {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
    }
    for module in (torch_pickle, torch_reader):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert not any(word in source for word in ("pickle.load", "Unpickler", "import_module", "eval(", "exec("))


# -- descriptions that do not fit the data


BAD_TENSORS = {
    "beyond its storage": (pickled_tensor((2, 3), offset=1), "ends at value 7 of a storage of 6"),
    "offset of 2**80": (pickled_tensor((2, 3), offset=1 << 80), "ends at value"),
    "shape of 2**80": (pickled_tensor((1 << 80, 3)), "ends at value"),
    "negative shape": (pickled_tensor((-2, -3)), "describes a tensor"),
    "negative offset": (pickled_tensor((2, 3), offset=-1), "describes a tensor"),
    "shape of another length than strides": (pickled_tensor((2, 3), strides=(3,)), "describes a tensor"),
    "nine axes": (pickled_tensor((1,) * 9), "describes a tensor"),
    "stride 0": (pickled_tensor((2, 3), strides=(0, 1)), "not contiguous"),
    "negative stride": (pickled_tensor((2, 3), strides=(3, -1)), "describes a tensor"),
    "storage of another size": (pickled_tensor((2, 3), n_values=5), "storage 0 of 5 f32 values takes 24 bytes"),
    "storage of negative size": (pickled_tensor((2, 3), n_values=-1), "refers to its data"),
    "storage of another dtype": (pickled_tensor((2, 3), storage="DoubleStorage"), "6 f64 values takes 24 bytes"),
    "storage of no dtype": (pickled_tensor((2, 3), storage="Tensor"), r"asks for torch\.Tensor"),
    "storage that is missing": (pickled_tensor((2, 3), key="7"), "record data/7 is missing"),
    "storage outside the archive": (pickled_tensor((2, 3), key="../../x"), "is missing"),
    "no storage": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR", "describes a tensor"),
    "shape is a number": (
        pickled_tensor((2, 3)).replace(integer(2) + integer(3) + b"\x86", integer(6), 1),
        "describes",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit(path, name):
    tensor, match = BAD_TENSORS[name]
    write_archive(path, pickled_dict(x=tensor))
    refused(path, match)


# -- damaged archives


def test_other_archives(path, tmp_path):
    good = pickled_dict(x=pickled_tensor((2, 3)))
    write_archive(path, good, compression=zipfile.ZIP_DEFLATED)
    refused(path, "is compressed or encrypted")
    write_archive(path, good, folder="a/b")
    refused(path, "not one that torch.save made")
    write_archive(path, good, extra={"other/data.pkl": b"x"})
    refused(path, "not one that torch.save made")
    write_archive(path, good, extra={"archive/byteorder": b"big"})
    refused(path, "big-endian")
    write_archive(path, pickled_dict())
    refused(path, "holds no tensors")
    write_archive(path, pickled_dict(state_dict=b"}"))
    refused(path, "holds no tensors at its top level")
    write_archive(path, good + b"x" * (5 << 20))
    refused(path, r"data\.pkl takes \d+ bytes; expected at most")
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_archive(path, good, extra={"archive/data/0": b"x"})
    refused(path, "two records of the same name")
    path.write_bytes(archive(good).replace(good, good[:-1] + b"0"))
    refused(path, "does not match its checksum")
    with zipfile.ZipFile(path, "w") as bomb:
        for i in range(20_000):
            bomb.writestr(f"archive/{i}", b"")
        bomb.writestr("archive/data.pkl", good)
    refused(path, "its directory takes")


@pytest.mark.parametrize(("field", "value"), [(42, 1 << 31), (20, 1 << 30), (24, 1 << 30), (8, 1)])
def test_directory_entry_that_lies(path, field, value):
    """One field of the first entry of the directory (that of data.pkl) at a time: offset, sizes, flags."""
    whole = bytearray(archive(pickled_dict(x=pickled_tensor((2, 3)))))
    at = whole.index(b"PK\x01\x02") + field
    whole[at : at + 2 if field == 8 else at + 4] = value.to_bytes(2 if field == 8 else 4, "little")
    path.write_bytes(whole)
    refused(path, "damaged|truncated|compressed or encrypted")
