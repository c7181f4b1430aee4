"""What goes to a device comes back in order, whether or not there is one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attnlstm.engines.transfers import Arrays, Transfers, narrow

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_results_come_back_in_order(device: str) -> None:
    kept: list[tuple[int, list[float], list[int]]] = []

    def compute(key: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert x.device.type == device
        return x + key, y * 2

    def keep(key: int, results: Arrays) -> None:
        kept.append((key, results[0].tolist(), results[1].tolist()))

    arrays = np.array([0.5, 1.5], np.float32), np.array([3, 4, 5], np.uint8)
    for array in arrays:
        array.flags.writeable = False
    Transfers(device, compute, keep).run((key, arrays) for key in range(5))
    assert kept == [(key, [0.5 + key, 1.5 + key], [6, 8, 10]) for key in range(5)]


def test_a_piece_is_drawn_before_the_one_before_it_is_kept() -> None:
    events: list[str] = []

    def pieces() -> object:
        for key in "abc":
            events.append(f"draw {key}")
            yield key, (np.zeros(1),)

    Transfers("cpu", lambda key, x: (x,), lambda key, results: events.append(f"keep {key}")).run(pieces())  # type: ignore[arg-type]
    assert events == ["draw a", "draw b", "keep a", "draw c", "keep b", "keep c"]


def test_what_compute_raises_reaches_the_caller() -> None:
    def compute(key: int, x: Tensor) -> tuple[Tensor]:
        raise ArithmeticError(f"piece {key}")

    with pytest.raises(ArithmeticError, match="piece 7"):
        Transfers("cpu", compute, lambda key, results: None).run([(7, (np.zeros(1),))])


def test_bytes_stay_bytes_and_other_integers_become_int32() -> None:
    values = np.array([0, 255], np.uint8)
    assert narrow(values) is values
    assert narrow(values.astype(np.uint64)).dtype == np.int32
