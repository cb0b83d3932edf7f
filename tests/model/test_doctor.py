"""Damaged files: each fault is named and repaired, the repaired file computes what the good one does, and healthy files
have no findings."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tiny_model import BYTE_TOKENS, SPECIAL_TOKENS, write_tiny_model

from localcoder import Coder
from localcoder.coder import embedded_model
from localcoder.errors import GGUFError, OutputError
from localcoder.faults import apply_changes
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.model.doctor import diagnose, write_repaired

TEXT = "def naïve(x):\r\n\treturn 12 <|EOT|> [PAD300]\n"
EOS, BEGIN, EOT = BYTE_TOKENS + 1, BYTE_TOKENS + 3, BYTE_TOKENS + 8
TYPES = "tokenizer.ggml.token_type"
V1 = {"llama.context_length": 16384}
INSTRUCT = {"general.name": "deepseek-coder-1.3b-instruct", "tokenizer.ggml.eos_token_id": EOT}
TEMPLATE = "{% for m in messages %}{{ '### Instruction:\n' + m['content'] }}{{ '### Response:\n<|EOT|>' }}{% endfor %}"
NO_SCALING = {"llama.rope.scaling.type": None, "llama.rope.scaling.factor": None}


def copy_of(source, target, changes, move=lambda name, data: data):
    """The same file with other metadata, and tensors' bytes as `move` gives them."""
    with GGUFFile.open(source) as file, GGUFOutput(target, "llama") as out:
        apply_changes(file.metadata, changes)
        out.copy_metadata(file)
        tensors = list(file.tensors.values())
        out.begin([TensorInfo(t.name, t.qtype, t.shape) for t in tensors])
        for tensor in tensors:
            out.write(tensor.name, move(tensor.name, tensor.data))
    return target


def typed(value):
    types = np.full(320, 5, np.int32)
    types[:BYTE_TOKENS] = 1
    types[BYTE_TOKENS : BYTE_TOKENS + len(SPECIAL_TOKENS)] = value
    return types


@pytest.fixture(scope="module", autouse=True)
def _quick_backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALCODER_BACKEND", "numpy")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A healthy file with everything a V1 file has."""
    folder = tmp_path_factory.mktemp("tiny")
    return copy_of(write_tiny_model(folder / "plain.gguf", type_name="q4_0"), folder / "good.gguf", V1)


@pytest.fixture(scope="module")
def trained():
    with embedded_model() as path:
        yield path


def findings(path):
    with GGUFFile.open(path) as file:
        diagnosis = diagnose(file)
        return [fault.rule for fault in diagnosis.findings], [fault.rule for fault in diagnosis.remarks]


def repaired(path, target, **options):
    with GGUFFile.open(path) as file:
        write_repaired(file, diagnose(file), target, **options)
    return target


def answers(path):
    """What a file does with a text: ids, logits, and what ends a generation."""
    with Coder(path, n_ctx=64) as coder:
        ids = coder.tokenize(TEXT), coder.tokenize(TEXT, parse_special=True)
        return *ids, coder.logits(ids[1][:40]).tobytes(), coder.tokenizer.stop_ids, coder.tokenizer.chat_template


# name: (metadata of the good file, what is changed then, the rule that finds it, whether loading assumes the repair:
# False: it warns; None: it refuses the file)
DAMAGE = {
    "pre missing": ({}, {"tokenizer.ggml.pre": None}, "pre-tokenizer", True),
    "pre default": ({}, {"tokenizer.ggml.pre": "default"}, "pre-tokenizer", True),
    "pre of the other vocabulary": ({}, {"tokenizer.ggml.pre": "deepseek-llm"}, "pre-tokenizer", False),
    "pre of another family": ({}, {"tokenizer.ggml.pre": "llama-bpe"}, "pre-tokenizer", None),
    "scaling missing": ({}, NO_SCALING, "rope-scaling", True),
    "scaling under the old key": ({}, {**NO_SCALING, "llama.rope.scale_linear": 4.0}, "rope-scaling", True),
    "scaling of type none": (
        {},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": None},
        "rope-scaling",
        False,
    ),
    "factor missing": ({}, {"llama.rope.scaling.factor": None}, "rope-scaling", None),
    "factor 1": ({}, {"llama.rope.scaling.factor": 1.0}, "rope-scaling", False),
    "base missing": ({}, {"llama.rope.freq_base": None}, "rope-base", True),
    "base 10000": ({}, {"llama.rope.freq_base": 10000.0}, "rope-base", False),
    "tokens for fewer rows": (
        {"llama.vocab_size": 320},
        {"tokenizer.ggml.tokens": 265, TYPES: typed(3)[:265], "llama.vocab_size": 265},
        "vocabulary-rows",
        True,
    ),
    "special tokens typed as text to match": ({}, {TYPES: typed(4)}, "token-types", True),
    "special tokens typed as normal text": ({}, {TYPES: typed(1)}, "token-types", True),
    "no types": ({}, {TYPES: None}, "token-types", True),
    "no BOS id": ({}, {"tokenizer.ggml.bos_token_id": None}, "special-ids", True),
    "no EOS id": ({}, {"tokenizer.ggml.eos_token_id": None}, "special-ids", True),
    "wrong BOS id": ({}, {"tokenizer.ggml.bos_token_id": 11}, "special-ids", False),
    "wrong EOS id": ({}, {"tokenizer.ggml.eos_token_id": 2}, "special-ids", False),
    "wrong infill id": ({}, {"tokenizer.ggml.fim_suf_token_id": BEGIN}, "special-ids", False),
    "not said whether BOS": ({}, {"tokenizer.ggml.add_bos_token": None}, "add-bos", True),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_fault_is_named_and_repaired(tiny, tmp_path, name):
    base, changes, rule, is_assumed = DAMAGE[name]
    good = copy_of(tiny, tmp_path / "good.gguf", base)
    with GGUFFile.open(good) as file:
        if "tokenizer.ggml.tokens" in changes:
            tokens = file.get_strings("tokenizer.ggml.tokens")[: changes["tokenizer.ggml.tokens"]]
            changes = {**changes, "tokenizer.ggml.tokens": tokens}
    bad = copy_of(good, tmp_path / "bad.gguf", changes)
    assert findings(good) == ([], [])
    found, _ = findings(bad)
    assert {*found} == {rule}
    fixed = repaired(bad, tmp_path / "fixed.gguf")
    assert findings(fixed) == ([], [])
    assert answers(fixed) == answers(good)
    if is_assumed is not None:
        with Coder(bad, n_ctx=64) as coder:
            assert len(coder.notes) == 1
            assert coder.notes[0].endswith("taken as the file says") != is_assumed
    if is_assumed:
        assert answers(bad) == answers(good)
    with GGUFFile.open(good) as a, GGUFFile.open(fixed) as b:
        assert list(a.tensors) == list(b.tensors)
        assert all((a.tensors[name].data == b.tensors[name].data).all() for name in a.tensors)
        changed = {*changes} - {"llama.rope.scale_linear", "llama.rope.scaling.type"}
        for key in a.metadata:
            if key not in changed:
                assert np.array_equal(a.metadata[key], b.metadata[key]), key
                assert a.value_types[key] == b.value_types[key], key


@pytest.mark.parametrize("template", [None, "", TEMPLATE[:-9], "{{ '### Instruction:' }}", "{{ messages }}"])
def test_the_template_of_an_instruct_model(tiny, tmp_path, template):
    good = copy_of(tiny, tmp_path / "good.gguf", {**INSTRUCT, "tokenizer.chat_template": TEMPLATE})
    assert findings(good) == ([], [])
    bad = copy_of(good, tmp_path / "bad.gguf", {"tokenizer.chat_template": template})
    assert findings(bad)[0] == ["chat-template"]
    with Coder(repaired(bad, tmp_path / "fixed.gguf")) as coder:
        assert "### Response:" in coder.tokenizer.chat_template
        assert coder.notes == []
    base = copy_of(bad, tmp_path / "base.gguf", {"general.name": "base", "tokenizer.ggml.eos_token_id": EOS})
    assert findings(base) == ([], [])


def test_a_template_for_another_vocabulary(tiny, tmp_path):
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    bad = copy_of(tiny, tmp_path / "bad.gguf", {**INSTRUCT, "tokenizer.chat_template": template})
    with GGUFFile.open(bad) as file:
        (fault,) = diagnose(file).findings
    assert "uses <|im_start|>, which is no token of this vocabulary" in fault.problem


def test_the_template_written_is_the_family_s(shared):
    import json

    jinja2 = pytest.importorskip("jinja2")
    from localcoder.tokenizer.chat_template import FAMILY_TEMPLATE

    config = json.loads((shared / "deepseek-coder/tokenizer_config.instruct.json").read_text(encoding="utf-8"))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    system, user, answer = ({"role": role, "content": f"{role}\ntext"} for role in ("system", "user", "assistant"))
    for messages in ([user], [system, user], [user, answer, user], [system, user, answer]):
        for prompt in (True, False):
            values = {"messages": messages, "bos_token": "<BOS>", "add_generation_prompt": prompt}
            expected = environment.from_string(config["chat_template"]).render(**values)
            assert environment.from_string(FAMILY_TEMPLATE).render(**values) == expected
            assert jinja2.Environment().from_string(FAMILY_TEMPLATE).render(**values) == expected


def test_an_old_file_with_many_faults(tiny, tmp_path):
    """As converters of 2023 wrote them."""
    lost = ["tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token", *NO_SCALING]
    lost += [f"tokenizer.ggml.{name}_token_id" for name in ("eot", "fim_pre", "fim_suf", "fim_mid")]
    changes = {**dict.fromkeys(lost), "llama.rope.scale_linear": 4.0, TYPES: typed(4)}
    bad = copy_of(tiny, tmp_path / "bad.gguf", changes)
    found, remarks = findings(bad)
    assert found == ["token-types", "pre-tokenizer", "add-bos", "rope-scaling"]
    assert remarks == ["special-ids"] * 4
    assert answers(bad) == answers(tiny)
    fixed = repaired(bad, tmp_path / "fixed.gguf")
    assert findings(fixed) == ([], [])
    with GGUFFile.open(fixed) as a, GGUFFile.open(tiny) as b:
        assert a.metadata.keys() == b.metadata.keys()


def test_healthy_files(trained, shared, tmp_path):
    assert findings(trained) == ([], [])
    with GGUFFile.open(shared / "deepseek-coder/vocab-v1.5.gguf") as file:
        assert diagnose(file).findings == ()
    unscaled = {**NO_SCALING, "llama.rope.freq_base": 10000.0, "llama.context_length": 4096}
    without_infill = copy_of(write_tiny_model(tmp_path / "tiny.gguf"), tmp_path / "m.gguf", unscaled)
    assert findings(without_infill) == ([], [])


class TestWeights:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(
        ("type_name", "name", "offset", "what"),
        [
            ("f32", "blk.1.attn_q.weight", 4 * (64 * 3 + 5), "value 5 of row 3"),
            ("f32", "output_norm.weight", 4 * 7, "value 7 of row 0"),
            ("f16", "blk.0.ffn_up.weight", 2 * (64 * 95 + 63), "value 63 of row 95"),
            ("q8_0", "blk.0.ffn_up.weight", 34 * 5, "scale of block 1 of row 2"),
        ],
    )
    def test_not_finite(self, tmp_path, type_name, name, offset, what, value):
        def spoil(tensor, data):
            if tensor != name:
                return data
            raw = bytearray(data.tobytes())
            number = np.array([value], "<f4" if type_name == "f32" or "norm" in name else "<f2").tobytes()
            raw[offset : offset + len(number)] = number
            return np.frombuffer(raw, np.uint8)

        good = write_tiny_model(tmp_path / "good.gguf", type_name=type_name)
        bad = copy_of(good, tmp_path / "bad.gguf", {}, spoil)
        with GGUFFile.open(bad) as file:
            diagnosis = diagnose(file)
        (fault,) = diagnosis.findings
        assert fault.problem == f"tensor {name}: {what} is not a finite number"
        assert diagnosis.left == diagnosis.findings

    def test_rows_of_q_and_k_in_the_checkpoint_s_order(self, trained, tmp_path):
        def to_halves(name, data):
            if not name.endswith(("attn_q.weight", "attn_k.weight")):
                return data
            pairs = data.reshape(-1, 16, 2, data.shape[-1])
            return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(data.shape)

        bad = copy_of(trained, tmp_path / "bad.gguf", {}, to_halves)
        assert findings(bad)[0] == ["rope-layout"]
        assert findings(repaired(bad, tmp_path / "left.gguf"))[0] == ["rope-layout"]
        fixed = repaired(bad, tmp_path / "fixed.gguf", permute=True)
        with GGUFFile.open(trained) as a, GGUFFile.open(fixed) as b:
            assert all((a.tensors[name].data == b.tensors[name].data).all() for name in a.tensors)
        assert findings(fixed) == ([], [])

    def test_random_rows_have_no_order(self, tmp_path):
        for seed in range(3):
            path = write_tiny_model(tmp_path / f"{seed}.gguf", n_layer=8, n_head=8, n_embd=128, seed=seed)
            assert findings(path) == ([], [])


def test_a_model_of_another_architecture(tiny, tmp_path):
    path = tmp_path / "m.gguf"
    with GGUFOutput(path, "qwen2") as out:
        out.begin([])
    with GGUFFile.open(path) as file:
        (fault,) = diagnose(file).findings
    assert fault.rule == "unusable"
    assert "'qwen2'" in fault.problem


def test_a_missing_tensor(tiny, tmp_path):
    path = tmp_path / "m.gguf"
    with GGUFFile.open(tiny) as file, GGUFOutput(path, "llama") as out:
        out.copy_metadata(file)
        kept = [t for t in file.tensors.values() if t.name != "blk.1.ffn_up.weight"]
        out.begin([TensorInfo(t.name, t.qtype, t.shape) for t in kept])
        for tensor in kept:
            out.write(tensor.name, tensor.data)
    with GGUFFile.open(path) as file:
        (fault,) = diagnose(file).findings
    assert (fault.rule, fault.problem) == ("unusable", "tensor blk.1.ffn_up.weight is missing")


def test_metadata_of_the_wrong_kind(tiny, tmp_path):
    bad = copy_of(tiny, tmp_path / "bad.gguf", {"tokenizer.ggml.tokens": None})
    with GGUFFile.open(bad) as file, pytest.raises(GGUFError, match=r"tokenizer\.ggml\.tokens is missing"):
        diagnose(file)


def test_the_copy_says_the_same_in_the_same_types(trained, tmp_path):
    """Read by the `gguf` package."""
    copied = repaired(trained, tmp_path / "copy.gguf")
    ours, theirs = (gguf.GGUFReader(path) for path in (copied, trained))
    assert {k: f.types for k, f in ours.fields.items()} == {k: f.types for k, f in theirs.fields.items()}
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.fields[key].contents() == field.contents(), key
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]


def test_a_split_file_becomes_one(tiny, tmp_path):
    with GGUFFile.open(tiny) as file:
        tensors = list(file.tensors.values())
        for number, part in enumerate((tensors[:5], tensors[5:])):
            with GGUFOutput(tmp_path / "part.gguf", "llama") as out:
                if number == 0:
                    out.copy_metadata(file)
                out.metadata.add_uint16("split.no", number)
                out.metadata.add_uint16("split.count", 2)
                out.metadata.add_int32("split.tensors.count", len(tensors))
                out.begin([TensorInfo(t.name, t.qtype, t.shape) for t in part])
                for tensor in part:
                    out.write(tensor.name, tensor.data)
            (tmp_path / "part.gguf").rename(tmp_path / f"m-{number + 1:05}-of-00002.gguf")
    fixed = repaired(tmp_path / "m-00001-of-00002.gguf", tmp_path / "whole.gguf")
    assert answers(fixed) == answers(tiny)
    (tmp_path / "link.gguf").hardlink_to(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(OutputError, match="is the file that is being read"):
        repaired(tmp_path / "m-00001-of-00002.gguf", tmp_path / "link.gguf")
