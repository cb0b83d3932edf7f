"""Diagnosis of a model file, and a repaired copy of it in which no weight has another value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcoder.errors import FileError, LocalcoderError, OutputError
from localcoder.faults import Fault, examine
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.model.faults import MODEL_RULES
from localcoder.model.hyperparameters import read_hyperparameters
from localcoder.model.llama import bind_weights
from localcoder.model.weight_faults import interleaved, not_finite, unpermuted
from localcoder.quants.spec import Bytes
from localcoder.tokenizer import Tokenizer
from localcoder.tokenizer.faults import VOCABULARY_RULES

Progress = Callable[[int, int, str], None]  # tensors done, tensors in all, name
_SLICE_BYTES = 1 << 24


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a file.

    Attributes:
        findings: what is wrong; none in a healthy file.
        remarks: what only some older programs stumble over.
        repaired: the file with metadata that set right whatever metadata can.
        left: findings that changing metadata does not help.
    """

    findings: tuple[Fault, ...]
    remarks: tuple[Fault, ...]
    repaired: GGUFFile

    @property
    def left(self) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.findings if not fault.changes)

    @property
    def is_in_checkpoint_order(self) -> bool:
        """Whether the rows of Q and K need to be brought into GGUF's order."""
        return any(fault.rule == "rope-layout" for fault in self.findings)


def diagnose(file: GGUFFile, progress: Progress | None = None) -> Diagnosis:
    """Looks for every known fault, the weights included.

    A file without tensors is looked at as a vocabulary.

    Raises:
        GGUFError: metadata are of the wrong type.
    """
    if file.get_str("general.architecture") != "llama":
        return Diagnosis(tuple(_unusable(file)), (), file)
    rules = [*VOCABULARY_RULES, *MODEL_RULES] if file.tensors else VOCABULARY_RULES
    repaired, faults = examine(file, rules, repair=True)
    if file.tensors:
        broken = list(not_finite(file, progress))
        faults += broken or _unusable(repaired)
        if not any(fault.rule in ("not-finite", "unusable") for fault in faults):
            faults += unpermuted(file, read_hyperparameters(repaired))
    findings = tuple(fault for fault in faults if not fault.is_harmless)
    return Diagnosis(findings, tuple(fault for fault in faults if fault.is_harmless), repaired)


def _unusable(file: GGUFFile) -> list[Fault]:
    """What still keeps the file from being loaded."""
    try:
        bind_weights(file, read_hyperparameters(file))
        Tokenizer.from_gguf(file)
    except LocalcoderError as error:
        problem = error.problem if isinstance(error, FileError) else str(error)
        return [Fault("unusable", problem, "localcoder cannot run the file")]
    return []


def write_repaired(
    file: GGUFFile, diagnosis: Diagnosis, target: Path, *, permute: bool = False, progress: Progress | None = None
) -> None:
    """Writes a repaired copy; every weight keeps its bytes.

    Args:
        permute: also brings the rows of Q and K into GGUF's order; whole rows move, their bytes stay.

    Raises:
        OutputError: the copy cannot be written, or is found to be faulty still. Nothing is left of it then.
    """
    repaired = diagnosis.repaired
    head_dim = read_hyperparameters(repaired).head_dim if permute else 0
    tensors = list(file.tensors.values())
    with GGUFOutput(target, file.get_str("general.architecture"), inputs=file.paths) as out:
        out.copy_metadata(repaired)
        out.begin([TensorInfo(t.name, t.qtype, t.shape) for t in tensors])
        for n_done, tensor in enumerate(tensors, 1):
            moves = permute and tensor.name.endswith((".attn_q.weight", ".attn_k.weight"))
            _write_rows(out, tensor.name, interleaved(tensor, head_dim) if moves else tensor.data)
            if progress:
                progress(n_done, len(tensors), tensor.name)
        out.finish()
        with GGUFFile.open(out.temporary) as written:
            _, faults = examine(written, [*VOCABULARY_RULES, *MODEL_RULES] if tensors else VOCABULARY_RULES)
            again = [fault.problem for fault in faults if fault.changes]
        if again:
            raise OutputError(target, f"the repaired file still has this fault: {again[0]}")


def _write_rows(out: GGUFOutput, name: str, data: Bytes) -> None:
    rows = data.reshape(-1, data.shape[-1])
    n_rows = max(1, _SLICE_BYTES // rows.shape[1])
    for at in range(0, len(rows), n_rows):
        out.write(name, rows[at : at + n_rows])
