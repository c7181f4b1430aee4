"""The fused kernel against float64 in every size; the same bits for a row in any company and on any processor."""

import hashlib
import importlib
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines import Scores, fused_cpu
from attnlstm.engines.fused_cpu import FusedCpuEngine, fits
from attnlstm.network import AttentionLSTM
from builders import bits, check_scores, make_network, make_rows

pytest.importorskip("numba")

LENGTHS = [5, 61, 1, 17, 2, 61, 29, 3, 1, 43, 7]


@pytest.fixture
def network() -> AttentionLSTM:
    """A network whose sizes are primes, with weights large enough to move its gates."""
    return make_network(hidden_size=11, attention_size=13)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 16},
        {"hidden_size": 16, "num_layers": 1},
        {"hidden_size": 11, "num_layers": 3, "attention_size": 13},
        {"hidden_size": 5},
        {"hidden_size": 8, "num_layers": 3},
        {"hidden_size": 37},
        {"hidden_size": 16, "longest_ngram": 4, "ngram_buckets": 64},
        {"hidden_size": 11, "num_layers": 1, "longest_ngram": 2, "ngram_buckets": 1024},
        {"hidden_size": 96, "longest_ngram": 3, "ngram_buckets": 64},
        {"hidden_size": 96},  # whose panels of weights are used in parts
        pytest.param({"hidden_size": 256}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_scores_agree_with_float64(sizes: dict[str, int]) -> None:
    network = make_network(**sizes)
    network.config = replace(network.config, temperature=1.7)
    if sizes["hidden_size"] > 32:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.div_(2)  # less, since more of them reach a gate
    rows = make_rows(LENGTHS * 2)
    scores = FusedCpuEngine(network, threads=2).score(*rows)
    assert scores.probabilities.dtype == scores.attention_weights.dtype == np.float32
    check_scores(network, scores, *rows)


@pytest.mark.parametrize("more", [{}, {"longest_ngram": 3, "ngram_buckets": 64}], ids=str)
def test_a_row_has_the_same_bits_in_any_company(more: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(hidden_size=11, attention_size=13, **more)
    values, offsets = make_rows(LENGTHS * 3)
    engine = FusedCpuEngine(network)
    alone = [engine.score(values[start:end], np.array([0, end - start])) for start, end in pairwise(offsets)]
    orders = [np.random.default_rng(seed).permutation(len(alone)) for seed in range(4)]
    for group_bytes, num_rows, order in zip((1, 1 << 12, 1 << 16, 1 << 30), (33, 32, 17, 5), orders, strict=True):
        monkeypatch.setattr(fused_cpu, "GROUP_BYTES", group_bytes)
        some = order[:num_rows]
        parts = [values[offsets[row] : offsets[row + 1]] for row in some]
        found = engine.score(np.concatenate(parts), np.concatenate(([0], np.cumsum([len(part) for part in parts]))))
        assert found.probabilities.tobytes() == b"".join(alone[row].probabilities.tobytes() for row in some)
        assert found.attention_weights.tobytes() == b"".join(alone[row].attention_weights.tobytes() for row in some)


def test_a_long_row_agrees_with_float64(network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cpu, "SCRATCH_BYTES", 1 << 20)
    rows = make_rows([1, 9_001, 2, 1_500])
    check_scores(network, FusedCpuEngine(network).score(*rows), *rows)


def test_states_of_a_long_row_lie_in_a_file_and_its_bits_are_the_same(
    network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = make_rows([1, 9_001, 2])
    layers = importlib.import_module("attnlstm.engines.fused_cpu.layers")  # which imports Numba
    in_memory = FusedCpuEngine(network).score(*rows)
    engine = FusedCpuEngine(network)
    sizes = []

    def in_file(shape: tuple[int, ...], real: Callable[[tuple[int, ...]], Any] = layers.in_file) -> Any:
        sizes.append(4 * math.prod(shape))
        return real(shape)

    monkeypatch.setattr(layers, "in_file", in_file)
    monkeypatch.setattr(fused_cpu, "SCRATCH_BYTES", 1 << 20)
    monkeypatch.setattr(layers, "BYTES_IN_MEMORY", 1 << 20)
    assert bits(engine.score(*rows)) == bits(in_memory)
    assert [size > 1 << 20 for size in sizes] == [True]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is not there"))
    with pytest.raises(OSError, match="is not there"):
        engine.score(*rows)


@pytest.mark.slow
def test_a_row_of_100_000_tokens_agrees_with_float64(network: AttentionLSTM) -> None:
    rows = make_rows([100_000, 1])
    check_scores(network, FusedCpuEngine(network).score(*rows), *rows)


def test_networks_that_do_not_fit_are_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ("a", "b")
    assert fits(ModelConfig(classes=classes)) is None
    assert fits(ModelConfig(classes=classes, hidden_size=32, num_layers=4)) is None
    assert str(fits(ModelConfig(classes=classes, attention="multihead"))).startswith("multihead attention compares")
    assert fits(ModelConfig(classes=classes, hidden_size=256)) is None
    assert fits(ModelConfig(classes=classes, hidden_size=257)) == (
        "hidden_size is 257; above 256 torch's own kernel is at least as fast"
    )
    assert fits(ModelConfig(classes=classes, num_embeddings=200_000)) == (
        "num_embeddings is 200000, which makes a folded table of 97 MiB; at most 64 are used"
    )
    with pytest.raises(ValueError, match="the fused-cpu engine can't run this network: multihead attention compares"):
        FusedCpuEngine(make_network(hidden_size=11, attention="multihead"))
    monkeypatch.setitem(sys.modules, "numba", None)
    assert str(fits(ModelConfig(classes=classes))).startswith("numba can't be imported (")


def test_without_a_folder_to_write_to_nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import types
    from numba.core.caching import CacheImpl

    from attnlstm.engines.numba_cache import compiled

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled(lambda x: x + 1, types.int64(types.int64))(2) == 3


def fixed_rows_and_scores(hidden_size: int, num_layers: int) -> tuple[np.ndarray, np.ndarray, Scores]:
    """Rows and a network of numbers from integer arithmetic, the same everywhere, and their scores."""
    config = ModelConfig(
        num_embeddings=43, embedding_dim=7, classes=tuple("abcde"), hidden_size=hidden_size, num_layers=num_layers
    )
    network = AttentionLSTM(config).eval()
    seed = 1
    with torch.no_grad():
        for parameter in network.parameters():
            numbers = (np.arange(seed, seed + parameter.numel()) * 2654435761 % 2**32) / 2**32 - 0.5
            seed += parameter.numel()
            parameter.copy_(torch.from_numpy(numbers.reshape(parameter.shape) * 3 / hidden_size**0.5))
    offsets = np.concatenate(([0], np.cumsum(LENGTHS * 3)))
    values = np.arange(offsets[-1]) * 2654435761 % 2**32 % 42
    return values, offsets, FusedCpuEngine(network).score(values, offsets)


DIGESTS = {
    (8, 1): "bc8205289a695f46",
    (16, 2): "6c11814c3adf6309",
    (37, 3): "c37643e11875c3de",
    (96, 2): "b5fa7abf5a601f49",
}
"""Of what fixed networks say about fixed rows. If they change, outputs on disk can't be made again to the byte:
CHANGELOG.md must say why."""


@pytest.mark.parametrize("sizes", DIGESTS, ids=str)
def test_scores_are_the_same_bits_on_every_processor(sizes: tuple[int, int]) -> None:
    scores = fixed_rows_and_scores(*sizes)[2]
    assert hashlib.sha256(b"".join(bits(scores))).hexdigest()[:16] == DIGESTS[sizes]


def run_limited(processor: dict[str, str], *arguments: str) -> None:
    """Python in a process whose Numba compiles for less than this processor."""
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | processor, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have vectors of one size")
def test_avx2_alone_gives_the_same_bits_and_agrees_with_float64() -> None:
    avx2 = {"NUMBA_CPU_NAME": "znver3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    program = "from attnlstm.engines.fused_cpu import kernel; assert (kernel.ROWS, kernel.LANES) == (3, 8)"
    run_limited(avx2, "-c", program)
    tests = "test_scores_are_the_same_bits_on_every_processor", "test_scores_agree_with_float64"
    run_limited(avx2, "-m", "pytest", "-q", "-m", "not slow", *(f"{__file__}::{test}" for test in tests))


def test_a_processor_without_fused_multiply_add_is_left_to_torch() -> None:
    program = (
        "from attnlstm.config import ModelConfig; from attnlstm.engines.fused_cpu import fits;"
        "assert fits(ModelConfig(classes=('a', 'b'))).startswith('the processor has no instruction that multiplies')"
    )
    run_limited({"NUMBA_CPU_NAME": "generic"}, "-c", program)


def test_equal_rows_are_computed_once_and_score_alike(network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    values, offsets = make_rows([5, 3, 29, 3, 4])
    values[5:8] = values[37:40]  # the rows of three tokens, and the row of four begins like them
    values[40:43] = values[37:40]
    order = [0, 1, 2, 3, 4, 2, 0, 1]
    parts = [values[offsets[row] : offsets[row + 1]] for row in order]
    repeated = np.concatenate(parts), np.concatenate(([0], np.cumsum([len(part) for part in parts])))
    engine = FusedCpuEngine(network)
    computed = []
    score = engine._layers.score
    monkeypatch.setattr(engine._layers, "score", lambda *a: (computed.extend(a[2]), score(*a)))
    scores = engine.score(*repeated)
    assert sorted(computed) == [0, 1, 2, 4]
    check_scores(network, scores, *repeated)
    alone = [engine.score(part, np.array([0, len(part)])) for part in parts]
    assert scores.probabilities.tobytes() == b"".join(each.probabilities.tobytes() for each in alone)
    assert scores.attention_weights.tobytes() == b"".join(each.attention_weights.tobytes() for each in alone)
