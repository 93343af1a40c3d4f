"""Says which package and extension are tested, and skips visibly what cannot run here."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import cuda_emulation as cuda_emulation_module
import pytest
import torch

import sacfast
from sacfast import native, trainer
from sacfast.native.builder import Builder
from sacfast.native.environment import environment_flag

DISABLED = environment_flag("DISABLE_NATIVE")


def pytest_report_header():
    return f"sacfast: {Path(sacfast.__file__).parent}, torch {torch.__version__}"


def pytest_collection_modifyitems(items):
    for item in items:
        if DISABLED and item.get_closest_marker("native"):
            item.add_marker(pytest.mark.skip(reason="SACFAST_DISABLE_NATIVE is set"))
        if not torch.cuda.is_available() and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def pytest_runtest_setup(item):
    """A test about native code fails without it; passing on the reference would prove nothing."""
    if item.get_closest_marker("native"):
        native.require()


@pytest.fixture(autouse=True)
def quick_and_clean(monkeypatch):
    """No pictures of runs, which take longer than the runs, unless a test asks for them; threads are put back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(trainer, "plot_run", lambda _: [])
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[pytest.param("native", marks=pytest.mark.native), "reference"])
def either_path(request, monkeypatch):
    """Operators natively, and by their references as where nothing is compiled."""
    if request.param == "reference":
        monkeypatch.setattr(native, "available", lambda device_type="cpu": False)


@pytest.fixture(scope="session")
def engine_library(tmp_path_factory) -> ctypes.CDLL:
    """The engine with every arithmetic path that can be executed here, AMX emulated where the CPU has none."""
    if DISABLED:
        pytest.skip("SACFAST_DISABLE_NATIVE is set")
    return ctypes.CDLL(str(Builder().compile_engine(tmp_path_factory.mktemp("engine"))))


@pytest.fixture(scope="session")
def cuda_emulation(tmp_path_factory) -> ctypes.CDLL:
    """The CUDA kernels and their engine, run on the CPU by the emulator."""
    if DISABLED:
        pytest.skip("SACFAST_DISABLE_NATIVE is set")
    return cuda_emulation_module.load(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Path]:
    """The folder benchmarks/, whose modules find one another as when one of them is run."""
    folder = Path(__file__).parent.parent / "benchmarks"
    if not folder.exists():
        pytest.skip("benchmarks/ is not beside tests/")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def cuda_place(request) -> dict:
    """Where a CudaEngine under test runs: its keyword arguments."""
    if request.param == "gpu":
        return {"device": "cuda"}
    library = request.getfixturevalue("cuda_emulation")
    library.emulator_set_schedule(cuda_emulation_module.FORWARD)
    library.emulator_set_multiprocessors(132)
    return {"device": "cpu", "library": library}


def pytest_terminal_summary(terminalreporter):
    state = native.status()
    terminalreporter.write_line(f"native kernels: {state.path if state.loaded else state.reason}")
