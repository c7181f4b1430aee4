"""A device is kept busy while results are put away. That they come back in order is for the tests of the engines."""

import numpy as np
import pytest
from torch import Tensor

from attnlstm.engines.transfers import Transfers


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
