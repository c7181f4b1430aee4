"""A network as files and back: `config.json` and `model.safetensors`.

Owns what a checkpoint's files hold and every check on the way in; nothing is ever unpickled. Knows nothing
about where files are kept: it takes and gives bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: what is wrong, where, and what to do."""


def to_files(network: AttentionLSTM) -> dict[str, bytes]:
    """The files of a checkpoint by name. The same weights and configuration give the same bytes."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return {CONFIG_FILE: network.config.to_json().encode(), WEIGHTS_FILE: safetensors.torch.save(weights)}


def from_files(files: Mapping[str, bytes], where: str) -> AttentionLSTM:
    """The network that `to_files` wrote, on CPU, in evaluation mode.

    files: contents by name; others than the two are ignored. where: the checkpoint's place, for messages.
    Raises CheckpointError.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise CheckpointError(
                f"checkpoint {where} has no {name}; a checkpoint is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    try:
        config = ModelConfig.from_json(files[CONFIG_FILE], CONFIG_FILE)
    except ValueError as error:
        raise _damaged(where, str(error)) from error
    try:
        weights = safetensors.torch.load(bytes(files[WEIGHTS_FILE]))
    except (SafetensorError, KeyError, ValueError) as error:
        # KeyError: a kind of number that this torch has not.
        size = len(files[WEIGHTS_FILE])
        raise _damaged(where, f"{WEIGHTS_FILE} ({size} bytes) is not safetensors: {error}") from error
    try:
        return _build(config, weights)
    except ValueError as error:
        raise _damaged(where, f"{WEIGHTS_FILE}: {error}") from error


def from_state_dict(
    state_dict: Mapping[str, Tensor], *, classes: Sequence[str] | None = None, num_heads: int = 1
) -> AttentionLSTM:
    """A network around weights trained elsewhere under the published parameter names.

    All sizes are read off the weights, except num_heads. classes: names in the order of the logits; None
    numbers them. Raises ValueError. A pickled state_dict is for its owner to open:

        state_dict = torch.load("published.pt", weights_only=True)
        network = from_state_dict(state_dict, classes=["acceptor", "donor", "neither"])
        files = to_files(network)   # config.json and model.safetensors, from here on
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    return _build(ModelConfig.from_shapes(shapes, classes=classes, num_heads=num_heads), state_dict)


def from_weights(
    content: bytes, where: str, *, classes: Sequence[str] | None = None, num_heads: int = 1
) -> AttentionLSTM:
    """As `from_state_dict`, of a safetensors file's bytes. where: its place, for messages. Raises CheckpointError."""
    try:
        weights = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{where} ({len(content)} bytes) is not safetensors: {error}") from error
    try:
        return from_state_dict(weights, classes=classes, num_heads=num_heads)
    except (ValueError, IndexError) as error:  # IndexError: a tensor of fewer dimensions
        raise CheckpointError(f"the weights in {where} cannot be used: {error}") from error


def _build(config: ModelConfig, weights: Mapping[str, Tensor]) -> AttentionLSTM:
    """The network with these weights. Raises ValueError on the first tensor that does not belong."""
    # Without storage, so that wrong sizes are met before memory is taken for them.
    with torch.device("meta"), _WithoutInitialWeights():
        network = AttentionLSTM(config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise ValueError(f"tensor {name} of shape {shape} is missing")
        found = weights[name]
        if tuple(found.shape) != shape:
            raise ValueError(f"tensor {name} must have shape {shape}, not {tuple(found.shape)}")
        if not found.is_floating_point():
            raise ValueError(f"tensor {name} must hold floating-point numbers, not {found.dtype}")
        if not found.isfinite().all():
            raise ValueError(f"tensor {name} holds NaN or infinite values")
    unknown = [name for name in weights if name not in expected]
    if unknown:
        raise ValueError(f"tensor {unknown[0]} does not belong to {config.attention} attention with these sizes")
    copies = {name: weights[name].detach().to("cpu", torch.float32, copy=True) for name in expected}
    network.load_state_dict(copies, assign=True)
    return network.eval()


class _WithoutInitialWeights(TorchFunctionMode):
    """Leaves out `torch.nn.init`: on the meta device it imports torch's compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _damaged(where: str, what: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {where} cannot be used: {what}. Restore the file or take another checkpoint.")
