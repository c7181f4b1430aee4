"""Ragged in, ragged out: input order, the same bits on any number of threads, safe from several at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from attnlstm.engines import torch_engine
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.network import AttentionLSTM

LENGTHS = [5, 61, 1, 17, 2, 61, 29, 3, 1, 43, 7]

Rows = Callable[[list[int]], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_engine.MAX_TOKENS, "cpu", 130)


@torch.no_grad()
def test_rows_come_back_in_order_as_the_network_scores_each_alone(network: AttentionLSTM, ragged: Rows) -> None:
    network.config = replace(network.config, temperature=1.7)
    values, offsets = ragged(LENGTHS)
    scores = TorchEngine(network, "cpu", threads=2).score(values, offsets)
    assert scores.probabilities.dtype == scores.attention_weights.dtype == np.float32
    assert scores.attention_weights.shape == values.shape
    for row, (start, end) in enumerate(pairwise(offsets)):
        token_ids = torch.from_numpy(values[start:end].astype(np.int64))[None]
        logits, weights = network(token_ids, torch.tensor([end - start]))
        np.testing.assert_allclose(scores.probabilities[row], (logits[0] / 1.7).softmax(0).numpy(), atol=1e-5)
        np.testing.assert_allclose(scores.attention_weights[start:end], weights[0].numpy(), atol=1e-5)


def test_threads_do_not_change_a_bit(network: AttentionLSTM, ragged: Rows) -> None:
    rows = ragged(LENGTHS * 3)
    one, three = (TorchEngine(network, "cpu", threads).score(*rows) for threads in (1, 3))
    assert one.probabilities.tobytes() == three.probabilities.tobytes()
    assert one.attention_weights.tobytes() == three.attention_weights.tobytes()


def test_several_threads_may_score_at_once(network: AttentionLSTM, ragged: Rows) -> None:
    engine = TorchEngine(network, "cpu", threads=2)
    inputs = [ragged(LENGTHS[:number]) for number in (3, 5, 7, 11)] * 3
    expected = [engine.score(*rows) for rows in inputs]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda rows: engine.score(*rows), inputs))
    for one, other in zip(expected, found, strict=True):
        assert one.probabilities.tobytes() == other.probabilities.tobytes()
        assert one.attention_weights.tobytes() == other.attention_weights.tobytes()


def test_logits_are_before_the_temperature(network: AttentionLSTM, ragged: Rows) -> None:
    network.config = replace(network.config, temperature=2.5)
    engine = TorchEngine(network, "cpu")
    logits = torch.from_numpy(engine.logits(*ragged(LENGTHS)))
    expected = engine.score(*ragged(LENGTHS)).probabilities
    np.testing.assert_allclose((logits / 2.5).softmax(1).numpy(), expected, rtol=1e-6)


def test_no_rows_give_no_scores(network: AttentionLSTM, ragged: Rows) -> None:
    scores = TorchEngine(network, "cpu").score(*ragged([]))
    assert scores.probabilities.shape == (0, 5)
    assert scores.attention_weights.shape == (0,)


def test_the_engine_keeps_the_weights_it_was_opened_with(network: AttentionLSTM, ragged: Rows) -> None:
    network.train()
    engine = TorchEngine(network, "cpu")
    before = engine.score(*ragged(LENGTHS)).probabilities
    torch.nn.init.zeros_(network.mlp[2].weight)
    assert network.training
    np.testing.assert_array_equal(engine.score(*ragged(LENGTHS)).probabilities, before)


def test_a_row_without_tokens_or_an_unknown_id_is_refused(network: AttentionLSTM, ragged: Rows) -> None:
    engine = TorchEngine(network, "cpu")
    with pytest.raises(ValueError, match="every row needs at least one token; row 1 has none"):
        engine.score(*ragged([3, 0, 2]))
    with pytest.raises(ValueError, match=r"token ids must be in 0\.\.41; found 42\.\.42"):
        engine.score(np.array([42], np.uint8), np.array([0, 1]))


def test_a_device_that_is_not_there_is_refused(network: AttentionLSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no CUDA device here; use 'auto' or 'cpu'"):
        TorchEngine(network, "cuda")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda', not 'tpu'"):
        TorchEngine(network, "tpu")  # type: ignore[arg-type]
    assert TorchEngine(network, "auto").device == "cpu"


def test_an_engine_needs_a_thread(network: AttentionLSTM) -> None:
    with pytest.raises(ValueError, match="at least one thread is needed, not 0"):
        TorchEngine(network, "cpu", threads=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(network: AttentionLSTM, ragged: Rows) -> None:
    rows = ragged(LENGTHS)
    cpu, cuda = (TorchEngine(network, device).score(*rows) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.probabilities, cpu.probabilities, atol=1e-5)
    np.testing.assert_allclose(cuda.attention_weights, cpu.attention_weights, atol=1e-5)
