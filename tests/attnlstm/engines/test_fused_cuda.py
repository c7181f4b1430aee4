"""The Triton kernels: interpreted on the CPU, which is slow, so rows are short and few; compiled for GPUs; and with a
GPU the same against float64, and a row longer than cuDNN takes.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import builders
from attnlstm.config import ModelConfig
from attnlstm.engines import fused_cuda
from attnlstm.engines.fused_cuda import FusedCudaEngine, fits
from builders import bits, check_scores, make_network, make_rows

pytest.importorskip("triton")

# numpy, which does the interpreter's arithmetic, warns of exp's overflow and of NaN; GPUs don't.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

LENGTHS = [5, 13, 1, 7, 2, 13, 1, 3]


@pytest.fixture
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 slots for all rows of a direction, so that more rows than these take turns."""
    monkeypatch.setitem(fused_cuda.PROGRAMS_PER_MULTIPROCESSOR, 16, 1)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ({"hidden_size": 11, "num_layers": 3, "attention_size": 13}, LENGTHS),
        ({"hidden_size": 33}, LENGTHS),
        ({"hidden_size": 11, "num_layers": 1}, [70, 64, 65]),  # each of several blocks of the pooling
    ],
    ids=str,
)
def test_scores_agree_with_float64(sizes: dict[str, int], lengths: list[int]) -> None:
    network = make_network(**sizes)
    network.config = replace(network.config, temperature=1.7)
    rows = make_rows(lengths)
    engine = FusedCudaEngine(network)
    scores = engine.score(*rows)
    assert (engine.name, engine.device, engine.precision) == ("fused-cuda", "cpu", "float32")
    assert scores.probabilities.dtype == scores.attention_weights.dtype == np.float32
    check_scores(network, scores, *rows)


@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize("lengths", [[4, 1, 3, 2, 1] * 9, [3] * 37], ids=["mixed", "equal"])
def test_rows_that_take_turns_have_the_bits_that_they_have_alone(lengths: list[int]) -> None:
    network = make_network(hidden_size=11, num_layers=1)
    values, offsets = make_rows(lengths)
    engine = FusedCudaEngine(network)
    scores = engine.score(values, offsets)
    check_scores(network, scores, values, offsets)
    for row in (0, 17, len(lengths) - 1):
        start, end = offsets[row : row + 2]
        alone = engine.score(values[start:end], np.array([0, end - start]))
        assert alone.probabilities.tobytes() == scores.probabilities[row].tobytes()
        assert alone.attention_weights.tobytes() == scores.attention_weights[start:end].tobytes()


def test_pieces_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FusedCudaEngine(make_network(hidden_size=11, num_layers=1))
    values, offsets = make_rows(LENGTHS)
    values.flags.writeable = False
    whole = engine.score(values, offsets)
    monkeypatch.setattr(fused_cuda, "SCRATCH_BYTES", 16 * 16 * 20)
    assert bits(engine.score(values.astype(np.int64), offsets.astype(np.int32))) == bits(whole)


@torch.no_grad()
def test_a_cell_that_adds_up_tiny_inputs_loses_none() -> None:
    network = make_network(hidden_size=11, num_layers=1)
    for name, parameter in network.sequence.named_parameters():
        parameter.zero_()
        if "bias_ih" in name:
            parameter.copy_(torch.tensor([60, 60, 3e-8, 60]).repeat_interleave(11))
    engine = FusedCudaEngine(network)
    states = torch.empty(60, 2, 16)
    engine._kernel.run_layer[(1, 2)](
        torch.zeros(60, dtype=torch.uint8), states, torch.zeros(1, dtype=torch.int64),
        torch.full((1,), 60, dtype=torch.int32), 1, engine._table, engine._table[0].numel(), engine._recurrents[0],
        FROM_TOKENS=True, B=16, H=16, PRECISION="ieee",
    )  # fmt: skip
    np.testing.assert_allclose(states[-1, 0, :11], np.tanh(60 * 3e-8), rtol=1e-5)


def test_a_device_with_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    def forward(*args: object) -> None:
        raise OutOfResources(200_704, 101_376, "shared memory")

    monkeypatch.setattr(FusedCudaEngine, "_forward", forward)
    with pytest.raises(
        ValueError, match=r"for hidden_size 64 this GPU has too little \(out of resource: shared memory"
    ):
        FusedCudaEngine(make_network(hidden_size=64))


def test_networks_and_machines_that_do_not_fit_are_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    classes = ("a", "b")
    assert fits(ModelConfig(classes=classes), "cuda") is None
    assert fits(ModelConfig(classes=classes), "cpu") == "it computes on a CUDA device, and this is a CPU"
    assert str(fits(ModelConfig(classes=classes, attention="multihead"), "cuda")).startswith("multihead attention")
    assert fits(ModelConfig(classes=classes, hidden_size=65), "cuda") == (
        "hidden_size is 65; a GPU's nearest memory holds weights up to 64"
    )
    assert fits(ModelConfig(classes=classes, num_embeddings=1 << 20), "cuda") == (
        "num_embeddings is 1048576, which makes a folded table of 512 MiB; at most 256 are used"
    )
    monkeypatch.setitem(sys.modules, "triton", None)
    assert str(fits(ModelConfig(classes=classes), "cuda")).startswith("triton, which comes with torch's CUDA builds,")


# Triton and the assembler in its wheel need no GPU to compile for one. A process of its own: a fault of LLVM's ends it.
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attnlstm.engines import fused_cuda, fused_cuda_kernel

POOL = dict(states="*fp32", begins="*i64", lengths="*i32", score_weights="*fp32", contexts="*fp64", weights="*fp32")
LAYER = dict(
    source="*fp32", above="*fp32", begins="*i64", lengths="*i32", num_rows="i32", input_weights="*fp32",
    input_size="i32", recurrents="*fp32",
)
for H, capability in (16, 80), (16, 90), (32, 90), (64, 90):
    pool = (fused_cuda_kernel.pool, POOL, dict(STEPS=1024 // H, D=2 * H), 4)
    layer = dict(B=fused_cuda.ROWS_PER_PROGRAM, H=H, PRECISION=fused_cuda.PRECISION)
    num_warps = int(H * fused_cuda.WARPS_PER_UNIT)
    tokens, states = (
        (fused_cuda_kernel.run_layer, LAYER | dict(source=source), dict(FROM_TOKENS=source == "*u8") | layer, num_warps)
        for source in ("*u8", "*fp32")
    )
    for kernel, types, constants, num_warps in (tokens, states, pool):
        compiled = compile(
            ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, {}),
            target=GPUTarget("cuda", capability, 32),
            options=dict(num_warps=num_warps, num_stages=1, enable_fp_fusion=True),
        )
        assert compiled.asm["cubin"]
        # Bytes of shared memory that capability 9.0 gives a program.
        assert compiled.metadata.shared <= 232_448, (kernel, H, capability, compiled.metadata.shared)
        print(kernel, H, capability)
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 12


# A process of its own: in this one the kernels may have been read for the interpreter.
ON_GPU = """
from attnlstm.engines.fused_cuda import FusedCudaEngine
from builders import check_scores, make_network, make_rows

for hidden_size, lengths in (16, [5, 61, 1, 17] * 2000), (11, [70_000, 1]), (32, [300, 2]), (64, [300, 2]):
    network = make_network(hidden_size=hidden_size)
    values, offsets = make_rows(lengths)
    scores = FusedCudaEngine(network).score(values, offsets)
    kept = min(len(lengths), 40)
    scores = type(scores)(scores.probabilities[:kept], scores.attention_weights[: offsets[kept]])
    check_scores(network, scores, values, offsets[: kept + 1], atol=2e-6)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_float64() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(builders.__file__).parent)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", ON_GPU], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
