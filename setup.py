"""Puts csrc/ into the wheel as sacfast.csrc, and with SACFAST_AOT=1 the compiled extension too.

Everything else is in pyproject.toml.
"""

import importlib.util
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
# From its file, because torch, which sacfast.native needs, may not be there.
environment_flag = runpy.run_path(str(HERE / "sacfast" / "native" / "environment.py"))["environment_flag"]


def native_package():
    """sacfast.native by itself: importing sacfast would need everything that it depends on."""
    folder = HERE / "sacfast" / "native"
    spec = importlib.util.spec_from_file_location(
        "sacfast_native", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildAnew(build_py):
    """Without what an earlier build left there: every C++ source that is installed is compiled, deleted ones too."""

    def run(self):
        shutil.rmtree(Path(self.build_lib) / "sacfast", ignore_errors=True)
        super().run()


class BuildAheadOfTime(build_ext):
    """Compiles with the sources, flags and tools that the first native call would use, every arithmetic path."""

    def run(self):
        native = native_package()
        builder = native.Builder(verbose=True, paths=native.machine.every_path())
        self.folder = (HERE if self.inplace else Path(self.build_lib)) / "sacfast" / native.PREBUILT.name
        shutil.rmtree(self.folder, ignore_errors=True)
        builder.build_into(self.folder)
        for log in self.folder.glob("*.log"):
            log.unlink()

    def get_outputs(self):
        return [str(path) for path in self.folder.iterdir()]

    def get_output_mapping(self):
        return {}


commands, extensions = {"build_py": BuildAnew}, []
if environment_flag("AOT"):
    commands["build_ext"], extensions = BuildAheadOfTime, [Extension("sacfast._native", [])]

# Setuptools takes every folder for a package, those without Python too.
csrc = ["sacfast.csrc", *(f"sacfast.csrc.{name}" for name in find_namespace_packages("csrc"))]

setup(
    packages=[*find_packages(include=["sacfast", "sacfast.*"]), *csrc],
    package_dir={"sacfast.csrc": "csrc"},
    package_data={"sacfast": ["py.typed"], **{name: ["*.cpp", "*.h", "*.cu", "*.cuh"] for name in csrc}},
    ext_modules=extensions,
    cmdclass=commands,
)
