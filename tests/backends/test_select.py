"""Which backend is chosen, and what is said when one is not there."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

from localcoder.backends import reference, select, threads
from localcoder.cli.main import main
from localcoder.errors import BackendError, OptionError


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)
    monkeypatch.delenv("LOCALCODER_THREADS", raising=False)
    select._warn_slower.cache_clear()


def entry(name: str, reason: str | None, automatic: bool = True, device: str = "cpu") -> select._Entry:
    class Entry(select._Entry):
        def unavailable_because(self) -> str | None:
            return reason

    return Entry(name, device, "fake", reference.__name__, "ReferenceBackend", automatic)


def test_importing_the_selector_loads_nothing_heavy():
    code = "import sys, localcoder.backends.select; print([m for m in ('numba', 'cffi', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_survey_compiles_nothing():
    code = "import sys; from localcoder.backends.select import survey; survey(); print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("name", select.usable_backends())
def test_the_forced_backend_is_the_one_that_opens(name, monkeypatch):
    monkeypatch.setenv("LOCALCODER_BACKEND", name)
    backend = select.open_backend(threads=1)
    assert backend.name == name
    assert [r.name for r in select.survey() if r.is_default] == [name]
    backend.close()


def test_unknown_names_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(OptionError, match="known: auto, cuda, cpu"):
        select.open_backend("tpu")
    monkeypatch.setenv("LOCALCODER_BACKEND", "fortran")
    with pytest.raises(OptionError, match="known: cuda, numba-cuda, c, numba, numpy"):
        select.open_backend()


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_card_that_is_not_here_is_refused_with_the_reason(device, monkeypatch):
    monkeypatch.setattr(select, "_BACKENDS", (entry("cuda", "no driver", device="cuda"), entry("c", None)))
    with pytest.raises(BackendError, match="cuda: no driver"):
        select.open_backend(device)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:1"])
def test_numbers_are_for_cards(device):
    with pytest.raises(OptionError, match="unknown device"):
        select.open_backend(device)


def test_without_a_card_the_cpu_computes_and_nothing_is_said(monkeypatch, caplog):
    monkeypatch.setattr(select, "_BACKENDS", (entry("cuda", "no driver", device="cuda"), entry("c", None)))
    with caplog.at_level(logging.INFO, "localcoder"):
        select.open_backend(threads=1)
    assert not caplog.records


def test_a_forced_backend_that_is_not_here_gives_its_reason(monkeypatch):
    monkeypatch.setattr(select, "_BACKENDS", (entry("c", "no library was built"),))
    monkeypatch.setenv("LOCALCODER_BACKEND", "c")
    with pytest.raises(BackendError, match="no library was built"):
        select.open_backend()


def test_the_second_best_is_taken_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(select, "_BACKENDS", (entry("c", "no library was built"), entry("numba", None)))
    with caplog.at_level(logging.WARNING, "localcoder"):
        select.open_backend(threads=1)
        select.open_backend(threads=1)
    assert [r.getMessage() for r in caplog.records] == [
        "running on numba, which is slower than c: no library was built"
    ]


def test_the_reference_is_never_chosen_automatically(monkeypatch):
    monkeypatch.setattr(select, "_BACKENDS", (entry("c", "gone"), entry("numpy", None, automatic=False)))
    with pytest.raises(BackendError, match="c: gone"):
        select.open_backend()


def test_a_missing_library_is_a_reason():
    missing = select._Entry("x", "cpu", "", "localcoder.backends.no_such_module", "X")
    assert missing.unavailable_because() == "localcoder.backends.no_such_module is not in this installation"


def test_a_library_that_does_not_load_is_a_reason(monkeypatch):
    def refuse(threads: int) -> None:
        raise ImportError("numba needs an older numpy")

    monkeypatch.setattr(reference, "ReferenceBackend", refuse)
    monkeypatch.setattr(select, "_BACKENDS", (entry("numba", None),))
    with pytest.raises(BackendError, match="numba backend cannot be loaded: numba needs an older numpy"):
        select.open_backend(threads=1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "100000"])
def test_bad_thread_counts_are_refused(text, monkeypatch):
    monkeypatch.setenv("LOCALCODER_THREADS", text)
    with pytest.raises(OptionError, match="LOCALCODER_THREADS"):
        threads.thread_count()
    if text.lstrip("-").isdigit():
        with pytest.raises(OptionError, match="threads is"):
            threads.thread_count(int(text))


def test_an_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("LOCALCODER_THREADS", "7")
    assert threads.thread_count() == 7
    assert threads.thread_count(3) == 3


def test_hyperthreads_of_one_core_count_once(tmp_path):
    for cpu, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n", encoding="ascii")
    assert threads._cores_of({0, 1, 2, 3}, tmp_path) == 2
    assert threads._cores_of({0, 2}, tmp_path) == 1
    assert threads._cores_of({0, 9}, tmp_path) == 2  # a CPU the system says nothing about


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cgroup_quotas(tmp_path, group, files, expected):
    membership = tmp_path / "membership"
    membership.write_text(group, encoding="ascii")
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    assert threads._cgroup_quota(tmp_path / "root", membership) == expected


def test_devices_tells_what_is_used_and_why_another_is_not(monkeypatch):
    monkeypatch.setattr(select, "_BACKENDS", (entry("c", "no library was built"), entry("numba", None)))
    text = CliRunner().invoke(main, ["devices"]).output
    assert "not usable" in text
    assert "because: no library was built" in text
    facts = json.loads(CliRunner().invoke(main, ["devices", "--json"]).output)
    assert [(b["name"], b["usable"], b["is_default"]) for b in facts["backends"]] == [
        ("c", False, False),
        ("numba", True, True),
    ]
    assert facts["threads"] >= 1


def test_devices_warns_of_the_stranger_called_localcoder(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.9" if name == "localcoder" else pytest.fail(name))
    result = CliRunner().invoke(main, ["devices"])
    assert "unrelated program" in result.stderr
    assert "unrelated" not in result.stdout
