"""The recorded program: buffer lifetimes."""

from __future__ import annotations

import numpy as np

from localcoder.backends.program import Add, Rope, SiluMul, assign_slots, reads, writes
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.hyperparameters import read_hyperparameters
from localcoder.model.llama import bind_weights, record


def tiny_program(path):
    from tiny_model import write_tiny_model

    with GGUFFile.open(write_tiny_model(path)) as file:
        hp = read_hyperparameters(file)
        return record(hp, bind_weights(file, hp), n_ctx=64, page_size=64, kv_type="f16")


def test_no_live_buffer_is_overwritten(tmp_path):
    program = tiny_program(tmp_path / "m.gguf")
    slot_of, widths = assign_slots(program)
    holds: dict[int, int] = {}  # slot -> buffer id
    for op in program.ops:
        for buffer in reads(op):
            assert holds[slot_of[buffer.id]] == buffer.id
        out = writes(op)
        if out is not None:
            slot = slot_of[out.id]
            assert widths[slot] >= out.width
            if not isinstance(op, (Rope, SiluMul, Add)):
                assert slot not in {slot_of[b.id] for b in reads(op)}
            holds[slot] = out.id
    assert holds[slot_of[program.logits.id]] == program.logits.id


def test_slots_are_few(tmp_path):
    program = tiny_program(tmp_path / "m.gguf")
    assert len(assign_slots(program)[1]) <= 6


def test_rope_table_follows_its_formula(tmp_path):
    program = tiny_program(tmp_path / "m.gguf")
    angle = 37 / 4.0 * 100000.0 ** (-2 * 3 / 16)
    assert np.isclose(program.rope.cos[37, 3], np.cos(angle), atol=1e-7)
    assert np.isclose(program.rope.sin[37, 3], np.sin(angle), atol=1e-7)
