"""AdamW over a network's parameters: torch's own fused update, without what its optimizers load besides.

Owns the moments and the average of the weights over steps, under the names that torch gives moments. `torch.optim` has
the same update and bits, but importing what wraps its optimizers takes seconds, and each step a tenth of a millisecond.
Knows nothing about schedules.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""torch's defaults."""


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), on CPUs and CUDA devices.

    parameters: updated in place, by the gradients in their `grad`. weight_decay: of all, or one for each.
    averaging: share of their average that a step keeps, so that it goes back over 1 / (1 - averaging) steps, and less
        at first; 0 for no average. learning_rate: of the next step.
    """

    def __init__(
        self, parameters: Sequence[Tensor], *, weight_decay: float | Sequence[float], averaging: float = 0.0
    ) -> None:
        self.learning_rate = 0.0
        self._parameters = list(parameters)
        decays = [weight_decay] * len(parameters) if isinstance(weight_decay, float) else list(weight_decay)
        # One call of the update for each decay, which is faster than one for each parameter.
        self._numbers = {decay: [n for n, other in enumerate(decays) if other == decay] for decay in decays}
        self._averaging, self._steps_averaged = averaging, 0
        self._moments = {
            "step": [torch.zeros((), device=each.device) for each in self._parameters],
            "exp_avg": [torch.zeros_like(each) for each in self._parameters],
            "exp_avg_sq": [torch.zeros_like(each) for each in self._parameters],
        }
        if averaging:
            self._moments["average"] = [each.detach().clone() for each in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One update. Every parameter has its gradient."""
        steps = self._moments["step"]
        torch._foreach_add_(steps, 1)
        for weight_decay, numbers in self._numbers.items():
            first, second, counts = (
                [self._moments[kind][n] for n in numbers] for kind in ("exp_avg", "exp_avg_sq", "step")
            )
            parameters = [self._parameters[n] for n in numbers]
            torch._fused_adamw_(
                parameters,
                [each.grad for each in parameters if each.grad is not None],
                first,
                second,
                [],
                counts,
                amsgrad=False,
                lr=self.learning_rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=weight_decay,
                eps=EPSILON,
                maximize=False,
            )
        if self._averaging:
            self._steps_averaged += 1
            kept = min(self._averaging, self._steps_averaged / (self._steps_averaged + 9))
            torch._foreach_lerp_(self._moments["average"], self._parameters, 1 - kept)

    def averages(self) -> list[Tensor]:
        """The parameters averaged over steps, which later steps change; the parameters themselves without averaging."""
        return self._moments.get("average", self._parameters)

    def moments(self) -> dict[str, Tensor]:
        """Of the parameters by number, such as "3.exp_avg"."""
        return {f"{n}.{kind}": each for kind, tensors in self._moments.items() for n, each in enumerate(tensors)}

    def load(self, moments: dict[str, Tensor]) -> None:
        """Go on with such moments. Raises KeyError if some are missing."""
        for name, tensor in self.moments().items():
            tensor.copy_(moments[name])
        self._steps_averaged = int(self._moments["step"][0])
