"""What holds of every engine: the scores of float64, on friendly and on hostile weights, and rows that never meet.

Triton's kernels are interpreted here, which is slow, so that the rows that all engines get are short and few.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from attnlstm.engines import Engine, open_engine
from attnlstm.network import AttentionLSTM
from builders import bits, check_scores, make_network, make_rows

# numpy, which does the interpreter's arithmetic, warns of exp's overflow and of NaN; GPUs don't.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

LENGTHS = [5, 13, 1, 7, 2, 13, 1, 3]

Open = Callable[..., Engine]


@pytest.fixture(params=["torch", "fused-cpu", "fused-cuda"])
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip({"torch": "torch", "fused-cpu": "numba", "fused-cuda": "triton"}[request.param])
    return str(request.param)


@pytest.fixture
def opened(name: str) -> Open:
    return lambda network, threads=1: open_engine(network, "cpu", engine=name, threads=threads)  # type: ignore[arg-type]


@pytest.fixture
def network(name: str) -> AttentionLSTM:
    """A network whose sizes are primes, with weights large enough to move its gates."""
    return make_network(hidden_size=11, attention_size=13, num_layers=1 if name == "fused-cuda" else 2)


def test_any_integers_and_strides_will_do_and_none_are_written_to(network: AttentionLSTM, opened: Open) -> None:
    values, offsets = make_rows(LENGTHS)
    engine = opened(network)
    expected = engine.score(values, offsets)
    assert expected.probabilities.dtype == expected.attention_weights.dtype == np.float32
    for dtype in (np.uint8, np.int8, np.uint64, np.int32):
        read_only = np.repeat(values.astype(dtype), 2)[::2]
        read_only.flags.writeable = False
        assert bits(engine.score(read_only, offsets.astype(np.int32))) == bits(expected)


@pytest.mark.parametrize("name", ["torch", "fused-cpu"], indirect=True)
def test_neither_threads_nor_several_callers_at_once_change_a_bit(network: AttentionLSTM, opened: Open) -> None:
    one, three = opened(network), opened(network, threads=3)
    inputs = [make_rows(LENGTHS[:number] * 9) for number in (3, 5, 7, 8)] * 3
    expected = [bits(one.score(*rows)) for rows in inputs]
    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(lambda rows: bits(three.score(*rows)), inputs)) == expected


@pytest.mark.parametrize(
    "gates", [(-60, 60, 60, 60), (-60, 60, -60, 60), (60, -60, 60, 60), (60, 60, -60, -60)], ids=str
)
@torch.no_grad()
def test_saturated_gates_agree_with_float64(
    gates: tuple[int, ...], network: AttentionLSTM, opened: Open, name: str
) -> None:
    for parameter_name, parameter in network.sequence.named_parameters():
        parameter.div_(3)
        if "bias_ih" in parameter_name:
            parameter.copy_(torch.tensor(gates).repeat_interleave(11))  # of i, f, g and o
    rows = make_rows([30 if name == "fused-cuda" else 5_000, 3, 1])
    atol = {"torch": 1e-5, "fused-cpu": 1e-7, "fused-cuda": 2e-7}[name]
    check_scores(network, opened(network).score(*rows), *rows, atol)


@torch.no_grad()
def test_large_logits_and_scores_are_no_trouble(network: AttentionLSTM, opened: Open) -> None:
    network.mlp[2].weight.mul_(1e30)
    network.attention.dot_product.weight.mul_(1e6)  # nearly all weight on one token
    values, offsets = make_rows(LENGTHS)
    scores = opened(network).score(values, offsets)
    np.testing.assert_array_equal(scores.probabilities.max(1), 1)
    np.testing.assert_allclose(np.add.reduceat(scores.attention_weights, offsets[:-1]), 1, atol=1e-6)
    check_scores(network, scores, values, offsets)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-39])
@torch.no_grad()
def test_tiny_weights_agree_with_float64(scale: float, network: AttentionLSTM, opened: Open) -> None:
    for parameter in network.parameters():
        parameter.mul_(scale)
    rows = make_rows(LENGTHS)
    check_scores(network, opened(network).score(*rows), *rows)


@torch.no_grad()
def test_a_number_that_is_none_stays_in_its_row(
    network: AttentionLSTM, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 slots for all rows of a direction on a GPU, so that another one takes the slot of the row, a long one.
    monkeypatch.setattr("attnlstm.engines.fused_cuda.PROGRAMS_PER_MULTIPROCESSOR", {16: 1})
    lengths = [2, 3, 1, 2] * 6
    values, offsets = make_rows(lengths)
    values[values == 41] = 40
    expected = opened(network).score(values, offsets)
    network.embedding.weight[41] = torch.nan
    row = 1
    values[offsets[row] + 1] = 41
    found = opened(network).score(values, offsets)
    of_row = np.repeat(np.arange(len(lengths)), lengths) == row
    assert np.isnan(found.probabilities[row]).all()
    assert np.isnan(found.attention_weights[of_row]).all()
    assert np.delete(found.probabilities, row, 0).tobytes() == np.delete(expected.probabilities, row, 0).tobytes()
    assert found.attention_weights[~of_row].tobytes() == expected.attention_weights[~of_row].tobytes()


def test_the_weights_are_those_that_it_was_opened_with(network: AttentionLSTM, opened: Open) -> None:
    network.train()
    engine = opened(network)
    before = bits(engine.score(*make_rows(LENGTHS)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert network.training
    assert bits(engine.score(*make_rows(LENGTHS))) == before


def test_no_rows_give_no_scores_and_unusable_ones_are_refused(network: AttentionLSTM, opened: Open) -> None:
    engine = opened(network)
    scores = engine.score(*make_rows([]))
    assert scores.probabilities.shape == (0, 5)
    assert scores.attention_weights.shape == (0,)
    with pytest.raises(ValueError, match="every row needs at least one token; row 1 has none"):
        engine.score(*make_rows([3, 0, 2]))
    with pytest.raises(ValueError, match=r"token ids must be in 0\.\.41; found 42\.\.42"):
        engine.score(np.array([42], np.uint8), np.array([0, 1]))
