"""Ragged in, ragged out, in input order; batches that fit a memory; less precision; what a machine does not have."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from attnlstm.batching import plan_batches
from attnlstm.engines import Precision, Scores, torch_engine
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.network import AttentionLSTM
from builders import check_scores, make_network, make_rows

LENGTHS = [5, 61, 1, 17, 2, 61, 29, 3, 1, 43, 7]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_engine.MAX_TOKENS, "cpu", 130)


def check_close(found: Scores, expected: Scores, atol: float) -> None:
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=atol)
    np.testing.assert_allclose(found.attention_weights, expected.attention_weights, atol=atol)


def test_rows_come_back_in_order_as_the_network_scores_each_alone(network: AttentionLSTM) -> None:
    network.config = replace(network.config, temperature=1.7)
    rows = make_rows(LENGTHS)
    check_scores(network, TorchEngine(network, "cpu", threads=2).score(*rows), *rows, 1e-5)


@pytest.mark.parametrize("more", [{}, {"longest_ngram": 3, "ngram_buckets": 64}], ids=str)
def test_a_multihead_network_has_its_layers_computed_by_the_fused_kernel(more: dict[str, int]) -> None:
    pytest.importorskip("numba")
    network = make_network(hidden_size=11, attention="multihead", **more)
    values, offsets = make_rows(LENGTHS)
    fused, plain = TorchEngine(network, "cpu"), TorchEngine(network, "cpu")
    assert fused._layers is not None
    states = fused._layers.states(values.astype(np.int32), offsets)
    for start, end in pairwise(offsets):
        alone = fused._layers.states(values[start:end].astype(np.int32), np.array([0, end - start]))
        assert alone.tobytes() == states[start:end].tobytes()
    plain._layers = None
    check_close(fused.score(values, offsets), plain.score(values, offsets), atol=1e-6)
    for other in (TorchEngine(network, "cpu", precision="bfloat16"), TorchEngine(make_network(), "cpu")):
        assert other._layers is None


def test_pieces_put_each_row_in_its_place(network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(LENGTHS)
    engine = TorchEngine(network, "cpu")
    whole = engine.score(*rows)
    monkeypatch.setattr(torch_engine, "PIECE_TOKENS", 80)
    check_close(engine.score(*rows), whole, atol=1e-6)


def test_a_batch_that_memory_does_not_hold_is_halved_and_so_are_later_ones(
    network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(LENGTHS * 2)
    expected = TorchEngine(network, "cpu").score(*rows)
    tried = limit_memory(monkeypatch, num_tokens=70)
    engine = TorchEngine(network, "cpu")
    for _ in range(2):
        check_close(engine.score(*rows), expected, atol=1e-6)
    assert [record.message for record in caplog.records] == [
        "The GPU's memory does not hold a batch of 244 tokens; from here on batches have at most 122.",
        "The GPU's memory does not hold a batch of 122 tokens; from here on batches have at most 61.",
    ]
    assert len([num_tokens for num_tokens in tried if num_tokens > 70]) == 2


def test_a_row_that_memory_does_not_hold_is_an_error(network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, num_tokens=60)
    with pytest.raises(MemoryError, match="a row of 61 tokens does not fit in the GPU's memory; score it on a CPU"):
        TorchEngine(network, "cpu").score(*make_rows(LENGTHS))


def limit_memory(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> list[int]:
    """Make networks run out of memory on more padded tokens than these. Returns the tokens of each pass, as tried."""
    tried: list[int] = []
    forward = AttentionLSTM.forward

    def limited(self: AttentionLSTM, token_ids: torch.Tensor, lengths: torch.Tensor) -> object:
        tried.append(token_ids.numel())
        if token_ids.numel() > num_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, token_ids, lengths)

    monkeypatch.setattr(AttentionLSTM, "forward", limited)
    monkeypatch.setattr(torch_engine, "_fused_layers", lambda *engine: None)  # as on a GPU
    return tried


def test_a_row_that_a_cpus_memory_does_not_hold_is_refused(
    network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, hidden_size = make_rows(LENGTHS), network.config.hidden_size
    monkeypatch.setitem(torch_engine.MAX_TOKENS, "cpu", 1)  # so that every row is a batch
    monkeypatch.setattr(torch_engine, "memory_bytes", lambda: 33 * hidden_size * 60)
    with pytest.raises(
        MemoryError, match=r"a row of 61 tokens takes the torch engine about .* limit the length of rows"
    ):
        TorchEngine(network, "cpu").score(*rows)
    monkeypatch.setattr(torch_engine, "memory_bytes", lambda: 33 * hidden_size * 61)
    assert len(TorchEngine(network, "cpu").score(*rows).probabilities) == len(LENGTHS)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no instructions for bfloat16")
def test_bfloat16_is_close_and_not_the_same(network: AttentionLSTM) -> None:
    rows = make_rows(LENGTHS)
    engine = TorchEngine(network, "cpu", precision="bfloat16")
    assert engine.precision == "bfloat16"
    exact, rough = TorchEngine(network, "cpu").score(*rows), engine.score(*rows)
    assert not np.array_equal(rough.probabilities, exact.probabilities)
    np.testing.assert_allclose(rough.probabilities, exact.probabilities, atol=5e-3)
    np.testing.assert_allclose(np.add.reduceat(rough.attention_weights, rows[1][:-1]), 1, atol=1e-6)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("chunk_tokens", [10**9, 1 << 22])
def test_padding_is_at_most_2_percent_of_skewed_lengths(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # batches of the size that is used
    lengths = np.clip(np.random.default_rng(53).lognormal(np.log(200), 1.0, 20_000).astype(np.int64), 1, 4096)
    chunks = np.split(lengths, np.flatnonzero(np.diff(np.cumsum(lengths) // chunk_tokens)))
    num_padded = 0
    for chunk in chunks:
        batches = plan_batches(
            chunk,
            max_tokens=torch_engine.MAX_TOKENS["cpu"],
            max_rows=torch_engine.MAX_ROWS["cpu"],
            min_rows=torch_engine.MIN_ROWS["cpu"],
        )
        num_padded += sum(len(rows) * int(chunk[rows].max()) for rows in batches)
    assert 1 - lengths.sum() / num_padded < 0.02


def test_logits_are_before_the_temperature(network: AttentionLSTM) -> None:
    network.config = replace(network.config, temperature=2.5)
    engine = TorchEngine(network, "cpu")
    logits = torch.from_numpy(engine.logits(*make_rows(LENGTHS)))
    expected = engine.score(*make_rows(LENGTHS)).probabilities
    np.testing.assert_allclose((logits / 2.5).softmax(1).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "device is 'cuda', but torch finds no CUDA device here; use 'auto' or 'cpu'"),
        ({"device": "tpu"}, "device must be 'auto', 'cpu' or 'cuda', not 'tpu'"),
        ({"threads": 0}, "at least one thread is needed, not 0"),
        ({"precision": "float16"}, "precision float16 is for CUDA devices; on a CPU take bfloat16 or float32"),
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16, not 'int8'"),
        ({"precision": "bfloat16"}, "this processor has no instructions for bfloat16"),
    ],
    ids=str,
)
def test_what_the_machine_does_not_have_is_refused(
    settings: dict[str, Any], message: str, network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert TorchEngine(network, "auto").device == "cpu"
    with pytest.raises(ValueError, match=message):
        TorchEngine(network, **{"device": "cpu", **settings})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-5), ("bfloat16", 5e-3), ("float16", 5e-3)])
def test_cuda_agrees_with_the_cpu(network: AttentionLSTM, precision: Precision, atol: float) -> None:
    rows = make_rows(LENGTHS)
    exact, found = TorchEngine(network, "cpu").score(*rows), TorchEngine(network, "cuda", 1, precision).score(*rows)
    np.testing.assert_allclose(found.probabilities, exact.probabilities, atol=atol)
    if precision == "float32":
        check_close(found, exact, atol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pieces_and_calls_on_cuda_do_not_disturb_each_other(
    network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "PIECE_TOKENS", 500)
    inputs = [make_rows(LENGTHS[:number] * 40) for number in (3, 5, 7, 11)] * 5
    cpu, cuda = TorchEngine(network, "cpu"), TorchEngine(network, "cuda")
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda rows: cuda.score(*rows), inputs))
    for rows, scores in zip(inputs, found, strict=True):
        check_close(scores, cpu.score(*rows), atol=1e-5)
