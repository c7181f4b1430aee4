"""What the measurements were made on: the processor, its cores, the system, and the versions that matter."""

import importlib.metadata
import platform
from pathlib import Path

from attnlstm.process import num_cores

PACKAGES = ("attnlstm", "torch", "numpy", "numba", "pyarrow", "prefect", "onnxruntime", "ray")


def describe_machine() -> dict[str, str]:
    """By name, as text."""
    versions = {"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {
        "processor": _processor(),
        "cores": str(num_cores()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }


def _processor() -> str:
    """The processor's name, with family and model, since a virtual machine often hides the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    known = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    name = known.get("model name", platform.processor())
    return f"{name}, family {known.get('cpu family', '?')} model {known.get('model', '?')}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
