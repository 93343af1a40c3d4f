"""The package's order: a module imports only modules above it, so nothing flows back up."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import sacfast

PACKAGE = Path(sacfast.__file__).parent
ORDER = [
    "errors",
    "requirements",
    "cores",
    "config",
    "native",
    "ops",
    "envs",
    "envstate",
    "replay",
    "normalizer",
    "networks",
    "state",
    "engines",
    "checkpoint",
    "notebook_file",
    "agent_file",
    "agent",
    "run_folder",
    "interop",
    "runs",
    "flags",
    "export",
    "checked",
    "vector",
    "sources",
    "collector",
    "tensor_pendulum",
    "diagnostics",
    "display",
    "logger",
    "evaluate",
    "plotting",
    "comparison",
    "plot",
    "stop",
    "learner",
    "pilot",
    "judge",
    "trainer",
    "train",
]


def imports_of(path: Path) -> set[str]:
    """First components below `sacfast` of every absolute or relative import in a file."""
    package = ("sacfast", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("sacfast.")}
    return found


def test_modules_import_only_upwards():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",) or parts[0] == "csrc":
            continue
        rank = ORDER.index(parts[0])
        late = {name for name in imports_of(path) if name in ORDER and ORDER.index(name) > rank}
        assert not late, f"{path.name} imports {late}, which come after it"


def test_importing_compiles_nothing_and_draws_nothing(tmp_path):
    """A fresh process that imports every public name leaves the build cache empty, and has no matplotlib."""
    code = """
import os, sys, sacfast, sacfast.train, sacfast.evaluate
print(os.listdir(os.environ["SACFAST_CACHE_DIR"]), "matplotlib" in sys.modules)
"""
    environment = {**os.environ, "SACFAST_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "[] False"
