"""Makes models of the DeepSeek-Coder shapes with random weights, for tests and measurements.

    python tools/make_checkpoint.py OUT --shape 1.3b             a Hugging Face checkpoint: bf16, sharded safetensors
    python tools/make_checkpoint.py OUT --hidden 256 --layers 2  another shape (see --help)
    python tools/make_checkpoint.py OUT.gguf --type q4_k --shape 33b   a GGUF file, with no checkpoint in between

Weights are normally distributed and scaled so that activations stay of order one through all layers, as in a trained
model. To be quick, matrices repeat a pool of random values, each from a random start; the pool's length is odd, so
that its repetitions do not line up with rows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from localcoder.convert.config import ModelConfig, read_config
from localcoder.convert.layout import TensorSpec, tensors_of
from localcoder.convert.recipes import ALL as RECIPES
from localcoder.convert.recipes import Recipe, Traits
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.quants import QuantType, by_name
from localcoder.quants.registry import BY_NAME
from localcoder.quants.spec import Bytes, Float32
from localcoder.tokenizer.source import SourceTokenizer

POOL_VALUES = 1 << 23
SHAPES: dict[str, dict[str, int]] = {
    "1.3b": {"hidden": 2048, "layers": 24, "heads": 16, "kv_heads": 16, "ff": 5504},
    "5.7b-mqa": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 1, "ff": 11008},
    "6.7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "ff": 11008},
    "33b": {"hidden": 7168, "layers": 62, "heads": 56, "kv_heads": 8, "ff": 19200},
}
SPECIAL_TOKENS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<pad>",
    "<|User|>",
    "<|Assistant|>",
    "<|EOT|>",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\n' + message['content'] + '\n' }}{% else %}"
    "{{ '### Response:\n' + message['content'] + '\n<|EOT|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
SHARED_TOKENIZER = Path(__file__).resolve().parents[2] / "shared" / "deepseek-coder"


def make_config(
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ff: int,
    head_dim: int | None = None,
    vocab: int = 32256,
    n_ctx: int = 16384,
    rope_theta: float = 100000.0,
    rope_factor: float | None = 4.0,
    tied: bool = False,
    new_style: bool = False,
) -> dict[str, Any]:
    """A config.json in the older style (`rope_scaling` + `rope_theta`) or the newer one (`rope_parameters`)."""
    scaling = None if rope_factor is None else {"type": "linear", "factor": rope_factor}
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": n_ctx,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "vocab_size": vocab,
    }
    if head_dim:
        config["head_dim"] = head_dim
    if new_style:
        kind = {"rope_type": "default"} if scaling is None else {"rope_type": "linear", "factor": rope_factor}
        config["rope_parameters"] = {"rope_theta": rope_theta, **kind}
    else:
        config |= {"rope_theta": rope_theta, "rope_scaling": scaling}
    return config


class RandomWeights:
    """Random tensors of one model, as streams of blocks."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._pool = cache(self._make_pool)

    def _spread(self, name: str) -> float:
        """Standard deviation of a matrix, for outputs of order one; the branches add up over the layers."""
        config = self._config
        if name == "output.weight":
            return 3 / config.n_embd**0.5
        if name.endswith("attn_output.weight"):
            return (2 * config.n_layer * config.n_head * config.head_dim) ** -0.5
        if name.endswith("ffn_down.weight"):
            return (2 * config.n_layer * config.n_ff) ** -0.5
        return config.n_embd**-0.5

    def _make_pool(self, qtype: QuantType, spread: float) -> Bytes:
        """uint8 [n_blocks, block_bytes], n_blocks odd; about POOL_VALUES values."""
        n_blocks = POOL_VALUES // qtype.block_elems + 1
        if qtype.quantize_blocks is None:
            return random_blocks(qtype, n_blocks, spread, self._rng)
        x = np.float32(spread) * self._rng.standard_normal(n_blocks * qtype.block_elems, np.float32)
        return qtype.quantize(x).reshape(n_blocks, qtype.block_bytes)

    def vector(self, n: int) -> Float32:
        return (1 + 0.1 * self._rng.standard_normal(n)).astype(np.float32)

    def stream(self, spec: TensorSpec, qtype: QuantType) -> Iterator[Bytes]:
        """The bytes of a tensor in `qtype`, in pieces."""
        if len(spec.shape) == 1:
            yield qtype.quantize(self.vector(spec.shape[0]))
            return
        pool = self._pool(qtype, self._spread(spec.name))
        left = int(np.prod(spec.shape[:-1])) * qtype.row_bytes(spec.shape[-1]) // qtype.block_bytes
        at = int(self._rng.integers(len(pool)))
        while left:
            piece = pool[at : at + left]
            yield piece.reshape(-1)
            left -= len(piece)
            at = 0


def random_blocks(qtype: QuantType, n_blocks: int, spread: float, rng: np.random.Generator) -> Bytes:
    """Blocks of a format that has no plain rounding: random codes under scales that give values of about `spread`.

    uint8 [n_blocks, block_bytes]; fewer blocks where scales are not half-precision fields.
    """
    blocks = rng.integers(0, 256, n_blocks * qtype.block_bytes, np.uint8).view(qtype.block)
    fields = qtype.block.names or ()
    if "d" not in fields or qtype.block["d"] != np.float16:
        with np.errstate(all="ignore"):  # some scales are not finite
            spreads = qtype.dequantize_blocks(blocks).std(axis=1)
        blocks = blocks[(spreads > spread / 2) & (spreads < 2 * spread)]
        blocks = blocks[: (len(blocks) - 1) | 1]
        return blocks.view(np.uint8).reshape(-1, qtype.block_bytes)
    some = blocks[:4096]
    some["d"] = 1
    if "dmin" in fields:  # x = d·codes - dmin·mins: the factor between the two makes the mean zero
        some["dmin"] = 0
        codes = qtype.dequantize_blocks(some).mean()
        some["dmin"] = 1
        some["dmin"] = codes / (codes - qtype.dequantize_blocks(some).mean())
    scale = spread / float(qtype.dequantize_blocks(some).std()) * rng.uniform(0.7, 1.3, n_blocks)
    blocks["d"] = scale
    if "dmin" in fields:
        blocks["dmin"] = scale * float(some["dmin"][0])
    return blocks.view(np.uint8).reshape(n_blocks, qtype.block_bytes)


# -- Hugging Face layout


@dataclass
class Shard:
    name: str
    tensors: list[TensorSpec]


def cut_into_shards(specs: list[TensorSpec], qtype: QuantType, shard_bytes: int, stem: str, suffix: str) -> list[Shard]:
    """Fills shards in order; a tensor larger than `shard_bytes` gets one to itself."""
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        n_bytes = int(np.prod(spec.shape)) * qtype.block_bytes
        if groups[-1] and size + n_bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += n_bytes
    if len(groups) == 1:
        return [Shard(f"{stem}.{suffix}", groups[0])]
    return [Shard(f"{stem}-{i:05}-of-{len(groups):05}.{suffix}", group) for i, group in enumerate(groups, 1)]


def write_safetensors(path: Path, specs: list[TensorSpec], qtype: QuantType, weights: RandomWeights) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in specs:
        end = at + int(np.prod(spec.shape)) * qtype.block_bytes
        header[spec.checkpoint_name] = {"dtype": qtype.name.upper(), "shape": spec.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            for piece in weights.stream(spec, qtype):
                f.write(piece.data)


def write_torch(path: Path, specs: list[TensorSpec], qtype: QuantType, weights: RandomWeights) -> None:
    import torch

    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[qtype.name]
    tensors = {}
    for spec in specs:
        data = np.concatenate(list(weights.stream(spec, qtype)))
        tensors[spec.checkpoint_name] = torch.from_numpy(data).view(dtype).reshape(spec.shape)
    torch.save(tensors, path)


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: str = "bf16",
    file_format: str = "safetensors",
    shard_bytes: int = 4 << 30,
    seed: int = 0,
) -> None:
    """Writes config.json, the weights and their index. `file_format` is `safetensors` or `bin` (needs torch)."""
    folder.mkdir(parents=True, exist_ok=True)
    torch_name = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    _write_json(folder / "config.json", {**config, "torch_dtype": torch_name})
    model = read_config(config, folder / "config.json")
    weights = RandomWeights(model, seed)
    qtype = by_name(dtype)
    specs = list(tensors_of(model))
    stem, suffix, write = {
        "safetensors": ("model", "safetensors", write_safetensors),
        "bin": ("pytorch_model", "bin", write_torch),
    }[file_format]
    shards = cut_into_shards(specs, qtype, shard_bytes, stem, suffix)
    for shard in shards:
        write(folder / shard.name, shard.tensors, qtype, weights)
    if len(shards) > 1:
        total = sum(int(np.prod(spec.shape)) for spec in specs) * qtype.block_bytes
        weight_map = {spec.checkpoint_name: shard.name for shard in shards for spec in shard.tensors}
        _write_json(
            folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


# -- tokenizers


def write_tokenizer(folder: Path, n_tokens: int) -> None:
    """A small byte-level BPE of at most `n_tokens` tokens, cut like the family's and with its special tokens last.

    It is trained on the text of this file.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if n_tokens < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"{n_tokens} tokens cannot hold 256 bytes and {len(SPECIAL_TOKENS)} special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(Regex(pattern), "isolated")
                for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")
            ),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[1],
            "pad_token": "<pad>",
            "chat_template": CHAT_TEMPLATE,
            "tokenizer_class": "LlamaTokenizerFast",
        },
    )


def add_tokenizer(folder: Path, n_vocab: int) -> None:
    """The family's tokenizer where it is beside the project and fits, else a small one."""
    source = SHARED_TOKENIZER / "tokenizer.json"
    if n_vocab >= 32022 and source.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / "tokenizer.json")
        shutil.copyfile(SHARED_TOKENIZER / "tokenizer_config.base.json", folder / "tokenizer_config.json")
    else:
        write_tokenizer(folder, min(n_vocab, 1024))


# -- GGUF


def make_tokenizer(n_vocab: int) -> SourceTokenizer:
    """What `add_tokenizer` gives a checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add_tokenizer(folder, n_vocab)
        source, config = (
            json.loads((folder / f"{part}.json").read_bytes()) for part in ("tokenizer", "tokenizer_config")
        )
        files = SimpleNamespace(
            folder=folder,
            config={},
            tokenizer_path=folder / "tokenizer.json",
            tokenizer=source,
            tokenizer_config=config,
            generation_config={},
            chat_template=config.get("chat_template"),
        )
        return SourceTokenizer(files)


def write_gguf(path: Path, config: dict[str, Any], type_name: str, *, seed: int = 0) -> None:
    """A GGUF file of `config`'s shape: random blocks of the types that a recipe chooses, or of one type."""
    model = read_config(config, path)
    recipe = next((r for r in RECIPES if r.name == type_name), Recipe(type_name, RECIPES[0].file_type, type_name))
    weights = RandomWeights(model, seed)
    specs = list(tensors_of(model))
    traits = Traits(model.n_layer, model.n_head // model.n_head_kv, model.tied)
    qtypes = [recipe.type_of(spec.name, spec.shape, traits) for spec in specs]
    with GGUFOutput(path, "llama") as out:
        out.metadata.add_name(path.stem)
        out.metadata.add_file_type(recipe.file_type)
        model.add_metadata(out.metadata)
        make_tokenizer(model.n_vocab).add_metadata(out.metadata, model.n_vocab)
        out.begin([TensorInfo(spec.name, qtype, spec.shape) for spec, qtype in zip(specs, qtypes)])
        for spec, qtype in zip(specs, qtypes):
            for piece in weights.stream(spec, qtype):
                out.write(spec.name, piece)


# -- command line


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(list(SHAPES)), help="A member of the family; other options change it.")
@click.option("--hidden", type=int, help="Width of the residual stream.")
@click.option("--layers", type=int, help="Number of layers.")
@click.option("--heads", type=int, help="Number of query heads.")
@click.option("--kv-heads", type=int, help="Number of KV heads.")
@click.option("--ff", type=int, help="Width of the feed-forward part.")
@click.option("--head-dim", type=int, help="Width of a head, where it is not hidden / heads.")
@click.option("--vocab", type=int, default=32256, show_default=True, help="Rows of the embedding.")
@click.option("--ctx", "n_ctx", type=int, default=16384, show_default=True, help="max_position_embeddings.")
@click.option("--rope-factor", type=float, default=4.0, show_default=True, help="Linear RoPE scaling; 0: none.")
@click.option("--tied", is_flag=True, help="The output matrix is the embedding.")
@click.option("--new-config", is_flag=True, help="Write rope_parameters instead of rope_scaling.")
@click.option("--dtype", type=click.Choice(["bf16", "f16", "f32"]), default="bf16", show_default=True)
@click.option("--format", "file_format", type=click.Choice(["safetensors", "bin"]), default="safetensors")
@click.option("--shard-gb", type=float, default=4.0, show_default=True, help="Largest shard.")
@click.option("--type", "type_name", type=click.Choice(list(BY_NAME)), help="Write a GGUF file of this type.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    out: Path,
    shape: str | None,
    file_format: str,
    dtype: str,
    shard_gb: float,
    type_name: str | None,
    rope_factor: float,
    new_config: bool,
    seed: int,
    **dimensions: Any,
) -> None:
    given = {key: value for key, value in dimensions.items() if value is not None}
    dims = {"hidden": 256, "layers": 2, "heads": 8, "kv_heads": 4, "ff": 768} | SHAPES.get(shape or "", {}) | given
    config = make_config(**dims, rope_factor=rope_factor or None, new_style=new_config)
    if type_name:
        write_gguf(out, config, type_name, seed=seed)
    else:
        add_tokenizer(out, config["vocab_size"])
        shard_bytes = int(shard_gb * 2**30)
        write_checkpoint(out, config, dtype=dtype, file_format=file_format, shard_bytes=shard_bytes, seed=seed)
    click.echo(f"wrote {out}", err=True)


if __name__ == "__main__":
    main()
