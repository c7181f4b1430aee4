"""What every inference engine does: ragged token rows in, probabilities and attention weights out.

Owns the contract and the choice of an engine. Knows nothing about how one computes, or where rows come from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from attnlstm.config import ModelConfig
    from attnlstm.network import AttentionLSTM

Device = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "torch", "fused-cpu", "fused-cuda"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Scores:
    """What a network says about N rows, in input order.

    probabilities: float32 (N, C), after the temperature; rows sum to 1.
    attention_weights: float32, one for each token of all rows end to end; each row's sum to 1.
    """

    probabilities: npt.NDArray[np.float32]
    attention_weights: npt.NDArray[np.float32]


class Engine(Protocol):
    """A network made ready to score. Several threads may call `score` at once.

    name: how it computes. device: where, "cpu" or "cuda". precision: of the recurrent part; the rest is
    float32 or better.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> Precision: ...

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """Score ragged rows.

        values: integer, the tokens of all rows end to end, ids in 0 .. num_embeddings - 2.
        offsets: int64 (N + 1,); row i holds values[offsets[i]:offsets[i + 1]], at least one token.
        Raises ValueError on a row without tokens or an id outside the vocabulary.
        """


def open_engine(
    network: "AttentionLSTM",
    device: Device = "auto",
    threads: int = 1,
    engine: EngineName = "auto",
    precision: Precision = "float32",
) -> Engine:
    """The engine for this network and device.

    device: "auto" takes a CUDA device if there is one. threads: batches computed side by side on a CPU; the
    results do not depend on it. engine: "auto" takes the fused one on a CPU where it fits (see `why_not_fused`),
    and torch for all else: "fused-cuda" has to be asked for. precision: less than float32 is torch's alone.
    Raises ValueError if the device is not there, or if the engine that was asked for can't run the network.
    """
    from attnlstm.engines.fused_cpu import FusedCpuEngine
    from attnlstm.engines.fused_cuda import FusedCudaEngine
    from attnlstm.engines.torch_engine import TorchEngine, resolve_device

    if engine not in get_args(EngineName):
        raise ValueError(f"engine must be one of {', '.join(get_args(EngineName))}, not {engine!r}")
    where = resolve_device(device)
    if engine == "fused-cuda":
        _refuse(engine, _why_not_fused_cuda(network.config, where, precision))
        return FusedCudaEngine(network)
    reason = why_not_fused(network.config, where, precision)
    if engine == "fused-cpu":
        _refuse(engine, reason)
    if engine == "torch" or reason:
        return TorchEngine(network, device, threads, precision)
    return FusedCpuEngine(network, threads)


def why_not_fused(config: "ModelConfig", device: str, precision: Precision = "float32") -> str | None:
    """None if the fused CPU engine can run such a network on "cpu" or "cuda", otherwise why it can't."""
    from attnlstm.engines.fused_cpu import fits

    return "it computes on a CPU" if device != "cpu" else _why_not_precision(precision) or fits(config)


def _why_not_fused_cuda(config: "ModelConfig", device: str, precision: Precision) -> str | None:
    from attnlstm.engines.fused_cuda import fits

    return _why_not_precision(precision) or fits(config, device)


def _why_not_precision(precision: Precision) -> str | None:
    return None if precision == "float32" else f"precision is {precision}, and fused kernels compute in float32"


def _refuse(engine: EngineName, reason: str | None) -> None:
    if reason:
        raise ValueError(f"the {engine} engine can't be used: {reason}; take 'auto' or 'torch'")
