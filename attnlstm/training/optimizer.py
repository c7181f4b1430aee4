"""AdamW over a network's parameters: torch's own fused update, without what its optimizers load besides.

Owns the moments, under the names that torch gives them. `torch.optim` has the same update and bits, but importing
what wraps its optimizers takes seconds, and each step a tenth of a millisecond. Knows nothing about schedules.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""torch's defaults."""


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), on CPUs and CUDA devices.

    parameters: updated in place, by the gradients in their `grad`. learning_rate: of the next step.
    """

    def __init__(self, parameters: Sequence[Tensor], *, weight_decay: float) -> None:
        self.learning_rate = 0.0
        self._parameters = list(parameters)
        self._weight_decay = weight_decay
        self._moments = {
            "step": [torch.zeros((), device=each.device) for each in self._parameters],
            "exp_avg": [torch.zeros_like(each) for each in self._parameters],
            "exp_avg_sq": [torch.zeros_like(each) for each in self._parameters],
        }

    @torch.no_grad()
    def step(self) -> None:
        """One update. Every parameter has its gradient."""
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        steps, averages, squares = self._moments.values()
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            self._parameters,
            gradients,
            averages,
            squares,
            [],
            steps,
            amsgrad=False,
            lr=self.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def moments(self) -> dict[str, Tensor]:
        """Of the parameters by number, such as "3.exp_avg"."""
        return {f"{n}.{kind}": each for kind, tensors in self._moments.items() for n, each in enumerate(tensors)}

    def load(self, moments: dict[str, Tensor]) -> None:
        """Go on with such moments. Raises KeyError if some are missing."""
        for name, tensor in self.moments().items():
            tensor.copy_(moments[name])
