"""Which engine computes: the fused one where it fits, unless another is asked for."""

import pytest

from attnlstm.config import ModelConfig
from attnlstm.engines import open_engine, why_not_fused
from attnlstm.network import AttentionLSTM

FITTING = ModelConfig(classes=("x", "y"))
MULTIHEAD = ModelConfig(classes=("x", "y"), attention="multihead")


def test_the_fused_engine_is_taken_where_it_fits() -> None:
    assert open_engine(AttentionLSTM(FITTING), "cpu").name == "fused-cpu"
    assert open_engine(AttentionLSTM(FITTING), "cpu", engine="torch").name == "torch"
    assert open_engine(AttentionLSTM(MULTIHEAD), "cpu").name == "torch"


def test_an_engine_that_was_asked_for_and_cannot_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="the fused-cpu engine can't be used: multihead attention compares"):
        open_engine(AttentionLSTM(MULTIHEAD), "cpu", engine="fused-cpu")


def test_a_reason_is_given_where_the_fused_engine_does_not_fit() -> None:
    assert why_not_fused(FITTING, "cpu") is None
    assert why_not_fused(FITTING, "cuda") == "it computes on a CPU"
    assert "all pairs of tokens" in str(why_not_fused(MULTIHEAD, "cpu"))
