"""A Hugging Face checkpoint: a folder with config.json, weights and tokenizer files.

This module finds the files and reads them as tensors, JSON and text; what they mean is decided elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from localcoder.errors import CheckpointError
from localcoder.files.checkpoint_tensor import CheckpointTensor
from localcoder.files.json_reader import read_json, read_text
from localcoder.files.safetensors_reader import SafetensorsFile
from localcoder.files.torch_reader import TorchFile

MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_SHARDS = 1 << 10

_WeightsFile = SafetensorsFile | TorchFile
# In the order of preference; each may also be sharded, with an index beside it.
_WEIGHTS: tuple[tuple[str, Callable[[Path], _WeightsFile]], ...] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", TorchFile),
)
_INDEX = ".index.json"


class Checkpoint:
    """An open checkpoint folder; a context manager.

    Attributes:
        folder: where it is.
        config: config.json.
        tensors: name -> tensor, views of the mapped files, in file order.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, CheckpointTensor]

    def __init__(self, folder: Path, config: dict[str, Any], files: list[_WeightsFile]) -> None:
        self.folder = folder
        self.config = config
        self._files = files
        tensors: dict[str, CheckpointTensor] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in tensors:
                    raise CheckpointError(file.path, f"tensor {name} is also in {tensors[name].path.name}")
                tensors[name] = tensor
        self.tensors = tensors

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Opens a folder with config.json and weights: safetensors, else torch `.bin`, whole or sharded.

        Raises:
            CheckpointError: the folder or a file of it is not there, damaged, or contradicts another.
        """
        folder = Path(folder)
        try:
            names = {entry.name for entry in folder.iterdir()}
        except FileNotFoundError:
            raise CheckpointError(folder, "no such folder") from None
        except NotADirectoryError:
            raise CheckpointError(folder, "is a file; expected a folder with config.json and weights") from None
        except (OSError, ValueError) as e:
            raise CheckpointError(folder, f"cannot be listed: {getattr(e, 'strerror', None) or e}") from None
        config = read_json(folder / "config.json", MAX_CONFIG_BYTES, CheckpointError)
        files: list[_WeightsFile] = []
        try:
            weight_map, open_file = _find_weights(folder, names)
            files.extend(map(open_file, dict.fromkeys(weight_map.values())))
            checkpoint = cls(folder, config, files)
            checkpoint._check_index(weight_map)
        except BaseException:
            for file in files:
                file.close()
            raise
        return checkpoint

    def _check_index(self, weight_map: Mapping[str, Path]) -> None:
        for name, path in weight_map.items():
            if name and (name not in self.tensors or self.tensors[name].path != path):
                raise CheckpointError(path, f"tensor {name} is missing; the index says that it is in this file")

    # -- files beside the weights

    @property
    def tokenizer_path(self) -> Path:
        """Where tokenizer.json is, whether or not it is there."""
        return self.folder / "tokenizer.json"

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json; CheckpointError if it is missing or broken."""
        return read_json(self.tokenizer_path, MAX_TOKENIZER_BYTES, CheckpointError)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json, empty if there is none."""
        return self._optional("tokenizer_config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, empty if there is none."""
        return self._optional("generation_config.json")

    @cached_property
    def chat_template(self) -> str | None:
        """chat_template.jinja, else the one in tokenizer_config.json (of several, the one named `default`)."""
        path = self.folder / "chat_template.jinja"
        if os.path.lexists(path):
            return read_text(path, MAX_CONFIG_BYTES, CheckpointError)
        found = self.tokenizer_config.get("chat_template")
        if isinstance(found, list):
            named = {x.get("name"): x.get("template") for x in found if isinstance(x, dict)}
            found = named.get("default")
        if found is None or isinstance(found, str):
            return found
        raise CheckpointError(self.folder / "tokenizer_config.json", "its chat_template is not text")

    def _optional(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json(path, MAX_CONFIG_BYTES, CheckpointError) if os.path.lexists(path) else {}

    def close(self) -> None:
        """Unmaps the files as soon as no view of a tensor is left."""
        self.tensors = {}
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _find_weights(folder: Path, names: set[str]) -> tuple[dict[str, Path], Callable[[Path], _WeightsFile]]:
    """Which tensor is in which file (of a single file: the empty name), and how to open such a file."""
    for name, open_file in _WEIGHTS:
        if name in names:
            return {"": folder / name}, open_file
        if name + _INDEX in names:
            return _read_index(folder / (name + _INDEX)), open_file
    single = sorted(name for name in names if name.endswith(".safetensors"))
    if len(single) == 1:
        return {"": folder / single[0]}, SafetensorsFile
    if single:
        raise CheckpointError(folder, f"has {len(single)} safetensors files and no model.safetensors{_INDEX}")
    raise CheckpointError(folder, "has no weights; expected model.safetensors or pytorch_model.bin, or their shards")


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> file, by the index at `path`."""
    weight_map = read_json(path, MAX_INDEX_BYTES, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(path, "has no weight_map of tensor names and files")
    shards = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not name:
            raise CheckpointError(path, f"its weight_map has no file name for tensor {name!r}")
        shards[name] = shard
    for shard in set(shards.values()):
        plain = PurePosixPath(shard).name == PureWindowsPath(shard).name == shard
        if not plain or shard in ("", ".", ".."):
            raise CheckpointError(path, f"names the file {shard!r}; expected one beside the index")
        if not os.path.lexists(path.parent / shard):
            raise CheckpointError(path.parent / shard, f"this shard is missing; {path.name} names it")
    if len(set(shards.values())) > MAX_SHARDS:
        raise CheckpointError(path, f"names {len(set(shards.values()))} files; expected at most {MAX_SHARDS}")
    return {name: path.parent / shard for name, shard in shards.items()}
