"""What the measurements were made on: the processor and its instructions, the system, and the versions that matter.

Knows how a process is kept from instructions that its processor has, so that others' processors can be stood in for.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from attnlstm.process import num_cores

PACKAGES = ("attnlstm", "torch", "numpy", "numba", "pyarrow", "prefect", "onnxruntime", "ray")

_LIBRARY = "hide_avx512.so"

AVX2_ONLY = {
    "NUMBA_CPU_NAME": "znver3",
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""Variables for a process that is to use no AVX-512. ONNX Runtime knows none: see `without_avx512`."""


def without_avx512(folder: Path) -> dict[str, str]:
    """AVX2_ONLY, and what hides AVX-512 from ONNX Runtime too, built in this folder.

    Without a C compiler, or where Linux can't make CPUID fault, ONNX Runtime uses AVX-512 all the same.
    """
    compiler, library, flags = shutil.which("cc"), folder.absolute() / _LIBRARY, Path("/proc/cpuinfo")
    if not compiler or not flags.exists() or "cpuid_fault" not in flags.read_text().split():
        return AVX2_ONLY
    source = Path(__file__).with_name("hide_avx512.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return AVX2_ONLY | {"LD_PRELOAD": str(library)}


def is_avx512_hidden() -> bool:
    """Whether this process was started with what `without_avx512` builds."""
    return _LIBRARY in os.environ.get("LD_PRELOAD", "")


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
