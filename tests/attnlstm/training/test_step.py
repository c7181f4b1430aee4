"""A step is that of the whole batch at once, whatever its slices."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attnlstm.batching import pad
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from attnlstm.process import worker_threads
from attnlstm.training.optimizer import AdamW
from attnlstm.training.rows import LabelledSequences, crop
from attnlstm.training.step import Stepper, _rows_per_slice

CONFIG = ModelConfig(num_embeddings=12, embedding_dim=5, hidden_size=7, classes=("x", "y", "z"))


class Descent(AdamW):
    """Steps that show the gradients as they are."""

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self._parameters:
            parameter -= self.learning_rate * parameter.grad


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weights", [np.ones(3, np.float32), np.array([0.5, 3, 1], np.float32)])
def test_a_step_is_that_of_the_whole_batch_at_once(
    weights: np.ndarray, fused: bool, planted: Callable[[int, int], LabelledSequences]
) -> None:
    """Slices, threads and summing do not change the gradient of the mean loss."""
    network = AttentionLSTM(CONFIG)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rows = np.arange(83)
    batch = crop(planted(307, 1), rows, 1000, np.random.default_rng(0))
    with worker_threads(2, "test") as workers:
        optimizer = Descent(list(network.parameters()), weight_decay=0.0)
        stepper = Stepper(
            network,
            optimizer,
            class_weights=weights,
            clip_norm=1e9,
            precision="float32",
            seed=0,
            workers=workers,
            fused=fused,
        )
        loss = stepper.take(batch, step=0, learning_rate=0.5)
    found = {name: before[name] - tensor for name, tensor in network.state_dict().items()}
    network.load_state_dict(before)
    token_ids, lengths = pad(batch.values, batch.offsets, rows, CONFIG.padding_id)
    logits, _ = network(torch.from_numpy(token_ids), torch.from_numpy(lengths))
    losses = F.cross_entropy(logits, torch.from_numpy(batch.labels), reduction="none")
    expected = (losses * torch.from_numpy(weights)[torch.from_numpy(batch.labels)]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(found[name], 0.5 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("num_rows", "longest", "expected"),
    [(64, 512, 32), (128, 512, 64), (1000, 512, 64), (20, 512, 32), (128, 8, 128), (64, 20, 51)],
)
def test_slices_keep_two_cores_busy_unless_rows_are_short(num_rows: int, longest: int, expected: int) -> None:
    assert _rows_per_slice(num_rows, longest) == expected
