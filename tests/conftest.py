"""Says which package and extension are tested, and skips visibly what cannot run here."""

from pathlib import Path

import pytest
import torch

import sacfast
from sacfast import native
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


def pytest_terminal_summary(terminalreporter):
    state = native.status()
    terminalreporter.write_line(f"native kernels: {state.path if state.loaded else state.reason}")
