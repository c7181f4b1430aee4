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


def test_an_average_follows_the_weights_over_more_and_more_steps() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = AdamW([weight], weight_decay=0.0, averaging=0.5)
    optimizer.learning_rate = 1.0
    expected = 0.0
    for step in range(1, 30):
        weight.grad = torch.ones(1)
        optimizer.step()
        kept = min(0.5, step / (step + 9))
        expected = kept * expected + (1 - kept) * weight.item()
        assert optimizer.averages()[0].item() == pytest.approx(expected, rel=1e-5)
    assert AdamW([weight], weight_decay=0.0).averages()[0] is weight


def test_each_parameter_may_have_a_decay_of_its_own() -> None:
    weights = [torch.ones(1, requires_grad=True) for _ in range(3)]
    optimizer = AdamW(weights, weight_decay=[0.1, 0.2, 0.1])
    optimizer.learning_rate = 0.5
    for weight in weights:
        weight.grad = torch.zeros(1)
    optimizer.step()
    assert [weight.item() for weight in weights] == pytest.approx([0.95, 0.9, 0.95])


def test_torchs_compiler_is_not_loaded_for_it() -> None:
    program = (
        "import sys, torch; from attnlstm.training.optimizer import AdamW;"
        "weight = torch.ones(2, requires_grad=True); weight.grad = torch.ones(2);"
        "AdamW([weight], weight_decay=0.0).step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
