"""Which engine computes: the fused one where it fits, unless another is asked for."""

import pytest
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines import open_engine, why_not_fused
from attnlstm.network import AttentionLSTM

FITTING = ModelConfig(classes=("x", "y"))
MULTIHEAD = ModelConfig(classes=("x", "y"), attention="multihead")


def test_the_fused_engine_is_taken_where_it_fits_and_a_reason_is_given_where_it_does_not() -> None:
    assert open_engine(AttentionLSTM(FITTING), "cpu").name == "fused-cpu"
    assert open_engine(AttentionLSTM(FITTING), "cpu", engine="torch").name == "torch"
    assert open_engine(AttentionLSTM(MULTIHEAD), "cpu").name == "torch"
    assert why_not_fused(FITTING, "cpu") is None
    assert why_not_fused(FITTING, "cuda") == "it computes on a CPU"
    assert "all pairs of tokens" in str(why_not_fused(MULTIHEAD, "cpu"))


def test_an_engine_that_is_unknown_or_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="the fused-cpu engine can't be used: multihead attention compares"):
        open_engine(AttentionLSTM(MULTIHEAD), "cpu", engine="fused-cpu")
    with pytest.raises(ValueError, match="engine must be one of auto, torch, fused-cpu, fused-cuda, not 'onnx'"):
        open_engine(AttentionLSTM(FITTING), "cpu", engine="onnx")  # type: ignore[arg-type]


def test_the_fused_cuda_engine_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert open_engine(AttentionLSTM(FITTING), "cpu", engine="fused-cuda").name == "fused-cuda"  # interpreted
    with pytest.raises(ValueError, match="the fused-cuda engine can't be used: multihead attention compares"):
        open_engine(AttentionLSTM(MULTIHEAD), "cpu", engine="fused-cuda")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="the fused-cuda engine can't be used: it computes on a CUDA device, and this"):
        open_engine(AttentionLSTM(FITTING), "cpu", engine="fused-cuda")


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no instructions for bfloat16")
def test_less_precision_is_torchs_alone() -> None:
    engine = open_engine(AttentionLSTM(FITTING), "cpu", precision="bfloat16")
    assert (engine.name, engine.precision) == ("torch", "bfloat16")
    assert open_engine(AttentionLSTM(FITTING), "cpu").precision == "float32"
    reason = "precision is bfloat16, and fused kernels compute in float32"
    assert why_not_fused(FITTING, "cpu", "bfloat16") == reason
    for name in ("fused-cpu", "fused-cuda"):
        with pytest.raises(ValueError, match=f"the {name} engine can't be used: {reason}; take 'auto' or 'torch'"):
            open_engine(AttentionLSTM(FITTING), "cpu", engine=name, precision="bfloat16")  # type: ignore[arg-type]
