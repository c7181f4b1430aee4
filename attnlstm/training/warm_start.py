"""A network to go on training from: another one's weights, with the classes of today.

Owns which weights are taken over and when they can't be. Knows nothing about training or files.
"""

from dataclasses import asdict, replace

import torch

from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM

_OF_CLASSES = ("mlp.2.weight", "mlp.2.bias")


def warm_started(old: AttentionLSTM, config: ModelConfig, seed: int) -> AttentionLSTM:
    """A network of this config with `old`'s weights; of its outputs, each class gets those of the class of its name.

    seed: of the initial weights of classes that `old` does not know, and of all if it knows none.
    Raises ValueError, which says why, if attention, sizes or vocabulary are not the same.
    """
    theirs = replace(
        old.config,
        classes=config.classes,
        num_classes=config.num_classes,
        dropout=config.dropout,
        temperature=config.temperature,
    )
    if theirs != config:
        ours = asdict(config)
        differing = [
            f"{name} {value}, not {ours[name]}" for name, value in asdict(theirs).items() if value != ours[name]
        ]
        raise ValueError(f"it has {'; '.join(differing)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AttentionLSTM(config)
    known = [name for name in config.classes if name in old.config.classes]
    here = [config.classes.index(name) for name in known]
    there = [old.config.classes.index(name) for name in known]
    weights, fresh = old.state_dict(), network.state_dict()
    for name in _OF_CLASSES:
        mapped = fresh[name].clone()
        mapped[here] = weights[name][there]
        weights[name] = mapped
    network.load_state_dict(weights)
    return network
