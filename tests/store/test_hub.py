"""What a hub says of a repository is a stranger's word."""

from __future__ import annotations

from localcoder.store.hub import RemoteFile, Repository


def test_gguf_files_are_in_no_folder_on_any_system():
    names = ["a-q8_0.gguf", "b/c-q4_0.gguf", "..\\d-q4_1.gguf", "C:e-q5_0.gguf", "/f-q5_1.gguf", ".gguf", "g.Q6_K.GGUF"]
    repository = Repository("owner/name", "main", [RemoteFile(name, 1, "0" * 64) for name in names])
    assert {kind: file.name for kind, file in repository.gguf_files().items()} == {
        "q8_0": "a-q8_0.gguf",
        "q6_k": "g.Q6_K.GGUF",
    }
