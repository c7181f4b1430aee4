"""What every inference engine does: ragged token rows in, probabilities and attention weights out.

Owns the contract and the choice of an engine. Knows nothing about how one computes, or where rows come from.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from attnlstm.config import ModelConfig
    from attnlstm.network import AttentionLSTM

Device = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "torch", "fused-cpu"]


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

    name: how it computes. device: where, "cpu" or "cuda".
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """Score ragged rows.

        values: integer, the tokens of all rows end to end, ids in 0 .. num_embeddings - 2.
        offsets: int64 (N + 1,); row i holds values[offsets[i]:offsets[i + 1]], at least one token.
        Raises ValueError on a row without tokens or an id outside the vocabulary.
        """


def open_engine(
    network: "AttentionLSTM", device: Device = "auto", threads: int = 1, engine: EngineName = "auto"
) -> Engine:
    """The engine for this network and device.

    device: "auto" takes a CUDA device if there is one. threads: batches computed side by side on a CPU; the
    results do not depend on it. engine: "auto" takes the fused one on a CPU where it fits (see `why_not_fused`).
    Raises ValueError if the device is not there, or if the engine that was asked for can't run the network.
    """
    from attnlstm.engines.fused_cpu import FusedCpuEngine
    from attnlstm.engines.torch_engine import TorchEngine, resolve_device

    reason = why_not_fused(network.config, resolve_device(device))
    if engine == "fused-cpu" and reason:
        raise ValueError(f"the fused-cpu engine can't be used: {reason}; take 'auto' or 'torch'")
    if engine == "torch" or reason:
        return TorchEngine(network, device, threads)
    return FusedCpuEngine(network, threads)


def why_not_fused(config: "ModelConfig", device: str) -> str | None:
    """None if the fused engine can run such a network on "cpu" or "cuda", otherwise why it can't."""
    from attnlstm.engines.fused_cpu import fits

    return "it computes on a CPU" if device != "cpu" else fits(config)
