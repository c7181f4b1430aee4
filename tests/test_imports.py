"""Keeps the direction of imports: deployments -> flows -> attnlstm | storage, the last two apart.

Knows the packages' names, nothing of what is in them.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "attnlstm": {"storage", "flows", "prefect", "pyarrow", "polars", "pydantic", "cyclopts"},
    "storage": {"attnlstm", "flows", "prefect", "torch", "safetensors", "pydantic", "cyclopts"},
    "flows": {"deployments", "tests"},
}

# Its `attnlstm.load`, once it is asked for, is that of flows.
FRONT_DOOR = REPOSITORY / "attnlstm" / "__init__.py"

# Runs in a fresh interpreter: imports what argv names, with every module below it, and prints what that loaded.
_LIST_LOADED = """
import importlib, pkgutil, sys

pending = sys.argv[1:]
while pending:
    try:
        module = importlib.import_module(pending.pop())
    except ModuleNotFoundError as error:
        if error.name != "triton":  # which is for Linux
            raise
        continue
    below = pkgutil.iter_modules(getattr(module, "__path__", []), module.__name__ + ".")
    pending += [name for _, name, _ in below if not name.endswith("__main__")]
print(*sys.modules, sep="\\n")
"""


def _loaded_by(name: str) -> set[str]:
    """Every module in sys.modules after importing `name` and all below it."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_LOADED, name], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def _imported_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.partition(".")[0] for name in _imported_modules(path)}


def _imported_modules(path: Path) -> set[str]:
    """The modules that a file imports, at any depth: a lazy import is one too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", ["attnlstm", "storage"])
def test_package_loads_nothing_that_belongs_to_another_layer(package: str) -> None:
    loaded = _loaded_by(package)

    files = (REPOSITORY / package).rglob("*.py")
    modules = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in files}
    assert {name.removesuffix(".__init__") for name in modules} <= loaded
    assert FORBIDDEN[package] & {name.partition(".")[0] for name in loaded} == set()


@pytest.mark.parametrize(
    ("module", "not_loaded"),
    [
        ("attnlstm.config", "torch"),
        ("attnlstm.training.settings", "torch"),  # of which flows make their forms, and a command line its help
        ("attnlstm.engines", "torch"),
        ("attnlstm.engines.fused_cuda", "triton"),
        ("attnlstm.engines.fused_cpu", "numba"),
    ],
)
def test_what_takes_long_to_import_waits_until_it_is_needed(module: str, not_loaded: str) -> None:
    code = f"import sys, {module}; sys.exit({not_loaded!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_file_of_a_package_imports_against_the_direction(package: str) -> None:
    against = {
        str(path.relative_to(REPOSITORY)): sorted(_imported_packages(path) & FORBIDDEN[package])
        for path in (REPOSITORY / package).rglob("*.py")
        if path != FRONT_DOOR
    }

    assert against
    assert {path: names for path, names in against.items() if names} == {}


# What a room of flows must not import, at any depth; what it stands on is what is not named here.
_ABOVE_OPERATIONS = {"flows.cli", "flows.classify", "flows.backfill", "flows.retrain", "flows.orchestration"}
ROOMS = {
    "flows/operations": _ABOVE_OPERATIONS | {"flows.settings", "prefect", "rich", "cyclopts"},
    "flows/settings.py": _ABOVE_OPERATIONS | {"cyclopts", "rich"},
    "flows/pages": {"flows.cli", "flows.classify", "flows.backfill", "flows.retrain", "prefect", "cyclopts", "rich"},
    "flows/orchestration": {"flows.cli", "flows.classify", "flows.backfill", "flows.retrain", "cyclopts"},
    "flows/classify.py": {"flows.cli", "flows.backfill", "flows.retrain"},
    "flows/backfill.py": {"flows.cli", "flows.retrain"},
    "flows/retrain.py": {"flows.cli", "flows.classify", "flows.backfill"},
}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_of_flows_import_in_one_direction(room: str) -> None:
    place = REPOSITORY / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    against = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in files
        for name in sorted(_imported_modules(path))
        if any(f"{name}.".startswith(f"{forbidden}.") for forbidden in ROOMS[room])
    ]

    assert files
    assert against == []


def test_deployments_start_flows_only() -> None:
    text = (REPOSITORY / "deployments" / "prefect.yaml").read_text(encoding="utf-8")
    entrypoints = re.findall(r"entrypoint:\s*[\"']?([^\s\"'#]+)", text)

    assert entrypoints
    assert [entrypoint for entrypoint in entrypoints if not entrypoint.startswith(("flows/", "flows."))] == []
