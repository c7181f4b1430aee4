"""What the measurements were made on: the processor and its instructions, the system, and the versions that matter.

Knows how a process is kept from instructions that its processor has, so that others' processors can be stood in for.
"""

import importlib.metadata
import platform
from pathlib import Path

from attnlstm.process import num_cores

PACKAGES = ("attnlstm", "torch", "numpy", "numba", "pyarrow", "prefect", "onnxruntime", "ray")


AVX2_ONLY = {
    "NUMBA_CPU_NAME": "znver3",
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""Variables for a process that is to use no AVX-512. ONNX Runtime has no such switch: it uses what there is."""


def instruction_set() -> str:
    """The vector instructions that the fused engine is compiled to here, or "none" where it can't be."""
    from attnlstm.engines.fused_cpu.tile import tile_of_processor

    tile = tile_of_processor()
    return {16: "AVX-512", 8: "AVX2", 4: "NEON"}[tile.lanes] if tile else "none"


def describe_machine() -> dict[str, str]:
    """By name, as text."""
    versions = {"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {
        "processor": _processor(),
        "instructions": instruction_set(),
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
