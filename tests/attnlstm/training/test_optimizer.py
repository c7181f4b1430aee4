"""The update is that of torch's own AdamW, to the last bit, and so are the names of what is kept."""

import copy
import subprocess
import sys

import pytest
import torch

from attnlstm.training.optimizer import AdamW
from builders import make_network


def test_steps_and_moments_are_torchs_bits() -> None:
    ours, theirs = make_network(hidden_size=11), make_network(hidden_size=11)
    optimizer = AdamW(list(ours.parameters()), weight_decay=0.03)
    torchs = torch.optim.AdamW(theirs.parameters(), lr=0.0, weight_decay=0.03, fused=True)
    generator = torch.Generator().manual_seed(3)
    for learning_rate in (0.1, 0.01, 0.003):
        optimizer.learning_rate = torchs.param_groups[0]["lr"] = learning_rate
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            other.grad = parameter.grad.clone()
        optimizer.step()
        torchs.step()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, other)
    state = torchs.state_dict()["state"]
    expected = {f"{n}.{kind}": each for n, of_parameter in state.items() for kind, each in of_parameter.items()}
    found = optimizer.moments()
    assert found.keys() == expected.keys()
    assert all(torch.equal(each, expected[name]) for name, each in found.items())


def test_it_goes_on_from_moments_and_not_without_them() -> None:
    network = make_network(hidden_size=11)
    optimizer = AdamW(list(network.parameters()), weight_decay=0.0)
    optimizer.learning_rate = 0.1
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = copy.deepcopy(optimizer.moments())
    again = copy.deepcopy(network)
    other = AdamW(list(again.parameters()), weight_decay=0.0)
    other.load(moments)
    other.learning_rate = 0.1
    for mine, parameter in zip(network.parameters(), again.parameters(), strict=True):
        parameter.grad = torch.full_like(parameter, 0.5)
        mine.grad = parameter.grad
    optimizer.step()
    other.step()
    assert all(map(torch.equal, network.parameters(), again.parameters()))
    with pytest.raises(KeyError):
        other.load({})


def test_torchs_compiler_is_not_loaded_for_it() -> None:
    program = (
        "import sys, torch; from attnlstm.training.optimizer import AdamW;"
        "weight = torch.ones(2, requires_grad=True); weight.grad = torch.ones(2);"
        "AdamW([weight], weight_decay=0.0).step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
