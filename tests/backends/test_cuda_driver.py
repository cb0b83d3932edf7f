"""The layer between the CUDA backend and a card: with fakes in the driver's place, since most machines have no card."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeCompiler

from localcoder import Coder
from localcoder.backends import reference, select
from localcoder.backends.cuda import compile as kernels
from localcoder.backends.cuda import driver
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.cards import Card, Survey, look
from localcoder.backends.cuda.compile import ALL_MODULES, PLAIN_MODULES, Module, ModuleStore, module_of, nvrtc_compile
from localcoder.backends.cuda.driver import CardDevice, choose_card
from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import BackendError, OptionError
from localcoder.quants import by_name

GOOD = Card(0, "Card", (8, 6), 24 << 30, None)
OLD = Card(1, "Old", (6, 1), 48 << 30, "its compute capability is 6.1, and 7.5 is needed")
LOADED = SimpleNamespace(handle=1)
SMALL = Card(2, "Small", (9, 0), 8 << 30, None)


class FakeDriver:
    """cuda.bindings.driver on a machine with `cards`: (name, capability)."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )

    def __init__(self, *cards: tuple[str, tuple[int, int]], version: int = 13000, status: str = "") -> None:
        self.cards, self.version, self.status = cards, version, status

    def cuInit(self, flags):
        class Status(int):
            name = self.status

        return (Status(100 if self.status else 0),)

    def cuDriverGetVersion(self):
        return 0, self.version

    def cuDeviceGetCount(self):
        return 0, len(self.cards)

    def cuDeviceGet(self, index):
        return 0, index

    def cuDeviceGetName(self, length, device):
        return 0, self.cards[device][0].encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, which, device):
        return 0, self.cards[device][1][which]

    def cuDeviceTotalMem(self, device):
        return 0, 24 << 30


def missing_package():
    raise ModuleNotFoundError("No module named 'cuda'")


def missing_driver():
    raise RuntimeError("libcuda.so.1 cannot be opened")


@pytest.mark.parametrize(
    ("api", "reason"),
    [
        (missing_package, "install localcoder's extra `cuda`"),
        (missing_driver, "no NVIDIA driver was found"),
        (lambda: FakeDriver(status="CUDA_ERROR_NO_DEVICE"), "the NVIDIA driver sees no card"),
        (lambda: FakeDriver(status="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), "restart the machine"),
        (lambda: FakeDriver(status="CUDA_ERROR_UNKNOWN"), "does not start: CUDA_ERROR_UNKNOWN"),
        (lambda: FakeDriver(), "the NVIDIA driver sees no card"),
        (lambda: FakeDriver(("Card", (9, 0)), version=11080), "too old: it knows CUDA 11.8, and 12.0 is needed"),
        (lambda: FakeDriver(("Card", (6, 1))), "compute capability is 6.1, and 7.5 is needed"),
    ],
)
def test_why_there_is_no_card(api, reason):
    found = look(api)
    assert reason in found.reason
    assert "\n" not in found.reason


def test_missing_sources_are_a_reason(monkeypatch):
    monkeypatch.setattr("localcoder.backends.cuda.cards.sources_folder", lambda: None)
    assert "sources are not in this installation" in look(lambda: FakeDriver(("Card", (9, 0)))).reason


def test_cards_are_described():
    found = look(lambda: FakeDriver(("Old", (6, 1)), ("New", (12, 0))))
    assert found.reason is None
    assert found.driver == "13.0"
    assert [card.name for card in found.cards] == ["Old", "New"]
    assert found.cards[1].architecture == "sm_120"
    assert "6.1" in found.cards[0].reason


def test_the_largest_usable_card_is_taken_unless_one_is_named():
    cards = (GOOD, OLD, SMALL)
    assert choose_card(cards, None) is GOOD
    assert choose_card(cards, 2) is SMALL
    with pytest.raises(BackendError, match=r"cuda:1 .* 7\.5 is needed"):
        choose_card(cards, 1)
    with pytest.raises(OptionError, match="no cuda:3 here; there is cuda:0, cuda:1, cuda:2"):
        choose_card(cards, 3)


def test_cards_are_opened_largest_first(monkeypatch):
    large = Card(3, "Large", (9, 0), 80 << 30, None)
    monkeypatch.setattr(driver, "survey_cards", lambda: Survey((GOOD, OLD, SMALL, large), "13.0", None))
    assert [opener.keywords["index"] for opener in driver.open_cards()] == [3, 0, 2]
    assert [opener.keywords["index"] for opener in driver.open_cards(2)] == [2]
    with pytest.raises(BackendError, match="cuda:1"):
        driver.open_cards(1)


@pytest.fixture
def good_card(monkeypatch):
    """A machine with a card, on which nothing is forced."""
    monkeypatch.setattr(driver, "survey_cards", lambda: Survey((GOOD,), "13.0", None))
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)


def test_a_missing_compiler_is_a_reason_and_the_cpu_computes(good_card, monkeypatch):
    def missing() -> str:
        raise BackendError("NVRTC is missing (libnvrtc.so.13 not found); install localcoder's extra `cuda`")

    monkeypatch.setattr(driver, "compiler_version", missing)
    assert driver.availability().startswith("NVRTC is missing")
    (report,) = [report for report in select.survey() if report.name == "cuda"]
    assert report.reason == driver.availability()
    assert select.is_on_cpu("auto")
    with pytest.raises(BackendError, match="cuda: NVRTC is missing"):
        select.open_backend("cuda")


def test_without_the_compilers_library_its_version_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"NVRTC is missing .*; install localcoder's extra `cuda`") as missing:
        kernels.compiler_version()
    assert "\n" not in str(missing.value)


def test_a_card_that_does_not_start_means_the_cpu(good_card, monkeypatch, caplog):
    class NoStart:
        def Device(self, index):
            raise RuntimeError("CUDA_ERROR_DEVICES_UNAVAILABLE:\nin use by another process")

    def open_card(index: int) -> CudaBackend:
        return CudaBackend(CardDevice(GOOD, ModuleStore("sm_86", FakeCompiler(), "13.0", Path()), None, NoStart()))

    monkeypatch.setattr(driver, "availability", lambda: None)
    monkeypatch.setattr(driver, "CardBackend", open_card)
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(n_ctx=64, threads=1) as coder:
        assert "cuda" not in coder.engine.backend.name
    (warning,) = [r.getMessage() for r in caplog.records if "does not start" in r.getMessage()]
    assert warning.endswith("in use by another process; computing on the CPU")
    with pytest.raises(BackendError, match="Card does not start: CUDA_ERROR_DEVICES_UNAVAILABLE: in use"):
        Coder(n_ctx=64, threads=1, device="cuda:0")


# --- compiled modules ------------------------------------------------------------------------------------------------


def test_modules_are_compiled_once_and_kept(tmp_path, caplog):
    compiler, module = FakeCompiler(), Module("linear", by_name("q4_k"))
    with caplog.at_level(logging.WARNING, "localcoder"):
        for _ in range(2):
            store = ModuleStore("sm_86", compiler, "13.0", tmp_path / "new" / "folder")
            assert store.load(module) == b"code of linear-q4_k"
    assert compiler.calls == ["linear-q4_k sm_86"]
    assert [record.getMessage().count("compiling CUDA kernels") for record in caplog.records] == [1]
    assert not list(tmp_path.rglob("*.tmp"))
    ModuleStore("sm_89", compiler, "13.0", tmp_path / "new" / "folder").load(module)
    ModuleStore("sm_86", compiler, "13.1", tmp_path / "new" / "folder").load(module)
    assert len(compiler.calls) == 3


def test_a_changed_source_is_compiled_again(tmp_path, monkeypatch):
    sources = tmp_path / "cuda"
    sources.mkdir()
    (sources / "linear.cu").write_text("one", encoding="utf-8")
    monkeypatch.setattr(kernels, "sources_folder", lambda: sources)
    compiler = FakeCompiler()
    for text in ("one", "two", "one"):
        (sources / "linear.cu").write_text(text, encoding="utf-8")
        ModuleStore("sm_86", compiler, "13.0", tmp_path / "kept").load(Module("elementwise"))
    assert len(compiler.calls) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 200])
def test_a_damaged_file_is_compiled_again(tmp_path, damage):
    compiler = FakeCompiler()
    store = ModuleStore("sm_86", compiler, "13.0", tmp_path)
    code = store.load(Module("attention"))
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == hashlib.sha256(code).digest() + code
    kept.write_bytes(damage)
    assert store.load(Module("attention")) == code
    assert store.load(Module("attention")) == code
    assert len(compiler.calls) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    compiler = FakeCompiler()
    store = ModuleStore("sm_86", compiler, "13.0", blocked / "cuda")
    for _ in range(2):
        assert store.load(Module("attention")) == b"code of attention"
    assert len(compiler.calls) == 2


def test_the_cache_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv(kernels.VARIABLE, str(tmp_path))
    assert kernels.cache_folder() == tmp_path
    monkeypatch.delenv(kernels.VARIABLE)
    assert kernels.cache_folder().parts[-2:] == ("localcoder", "cuda")


def test_kernels_are_in_the_modules_that_launches_look_in():
    folder = kernels.sources_folder()
    for name in ("lc_rms_norm", "lc_write_kv_f16", "lc_attend_few_f16_1", "lc_combine", "lc_highest", "lc_peak_f16"):
        source = (folder / f"{module_of(name, None).source}.cu").read_text(encoding="utf-8")
        assert name.split("_f16")[0] in source
    assert len(ALL_MODULES) == len({module.name for module in ALL_MODULES})


def test_nvrtc_compiles_without_a_card():
    pytest.importorskip("cuda.core")
    assert nvrtc_compile(Module("elementwise"), "sm_75")[:4] == b"\x7fELF"
    assert nvrtc_compile(Module("linear", by_name("q4_0")), "sm_90")[:4] == b"\x7fELF"
    with pytest.raises(BackendError, match="NVRTC cannot compile elementwise for sm_10"):
        nvrtc_compile(Module("elementwise"), "sm_10")


def made_ready(folder: Path, modules, monkeypatch) -> None:
    (folder / "fatbins").mkdir(parents=True)
    for module in modules:
        (folder / "fatbins" / f"{module.name}.fatbin").write_bytes(b"fatbin of " + module.name.encode())
    monkeypatch.setattr(kernels, "sources_folder", lambda: folder)


def test_with_all_kernels_ready_made_no_compiler_is_needed(good_card, tmp_path, monkeypatch):
    def missing() -> str:
        raise BackendError("NVRTC is missing")

    monkeypatch.setattr(driver, "compiler_version", missing)
    made_ready(tmp_path / "some", ALL_MODULES[1:], monkeypatch)
    assert driver.availability() == "NVRTC is missing"
    made_ready(tmp_path / "all", ALL_MODULES, monkeypatch)
    assert driver.availability() is None


def test_ready_made_kernels_are_loaded_and_others_compiled(tmp_path, monkeypatch):
    loaded = []

    class Core:
        class ObjectCode:
            from_cubin = staticmethod(lambda code, name: loaded.append(("cubin", name, code)) or LOADED)
            from_fatbin = staticmethod(lambda code, name: loaded.append(("fatbin", name, code)) or LOADED)

        def Device(self, index):
            return SimpleNamespace(set_current=lambda: None, create_stream=lambda: None)

    made_ready(tmp_path / "ready", ALL_MODULES[:1], monkeypatch)
    store = ModuleStore("sm_86", FakeCompiler(), "13.0", tmp_path)
    CardDevice(GOOD, store, None, Core()).prepare([by_name("q4_0")])
    assert loaded == [
        ("fatbin", "elementwise", b"fatbin of elementwise"),
        ("cubin", "attention", b"code of attention"),
        ("cubin", "highest", b"code of highest"),
        ("cubin", "linear-q4_0", b"code of linear-q4_0"),
    ]


def test_fatbins_are_made_for_the_architectures_that_are_checked():
    text = (Path(__file__).resolve().parents[2] / "CMakeLists.txt").read_text(encoding="utf-8")
    numbers = " ".join(architecture.removeprefix("sm_") for architecture in kernels.ARCHITECTURES)
    assert f"foreach(architecture {numbers})" in text


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("cmake")), reason="there is no nvcc or no cmake")
def test_a_build_with_nvcc_has_fatbins(tmp_path):
    root, build = Path(__file__).resolve().parents[2], tmp_path / "build"
    options = ["-DSKBUILD=ON", "-DLOCALCODER_CUDA_FATBINS=ON", "-DLOCALCODER_CUDA_FORMATS=q4_0"]
    subprocess.run(["cmake", "-S", root, "-B", build, *options], check=True)
    subprocess.run(["cmake", "--build", build, "--target", "localcoder_fatbins"], check=True)
    found = {path.stem: path.read_bytes() for path in (build / "fatbins").iterdir()}
    assert set(found) == {*(module.name for module in PLAIN_MODULES), "peak", "linear-q4_0"}
    assert all(code[:4] == b"\x50\xed\x55\xba" for code in found.values())


class TooSmall(ReferenceBackend):
    """As a card on which the model does not fit."""

    name = "cuda"

    def compile(self, *arguments):
        raise BackendError("the model does not fit on the card")


def test_auto_goes_on_with_the_cpu_where_the_model_does_not_fit(monkeypatch, caplog):
    monkeypatch.setattr(reference, "TooSmall", TooSmall, raising=False)
    card = select._Entry("cuda", "cuda", "", reference.__name__, "TooSmall")
    monkeypatch.setattr(select, "_BACKENDS", (card, *select._BACKENDS[1:]))
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(n_ctx=64, threads=1) as coder:
        assert coder.complete("x = ", max_tokens=2)
    assert any("does not fit on the card; computing on the CPU" in r.getMessage() for r in caplog.records)
    with pytest.raises(BackendError, match="does not fit on the card"):
        Coder(n_ctx=64, threads=1, device="cuda")
