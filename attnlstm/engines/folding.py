"""A network's weights, rearranged so that a fused kernel has less to compute, and the same to the last digit.

Owns which matrices fold into which. Knows nothing about kernels, devices or rows; everything is float64 here,
and whoever uses it rounds once.

Shape letters: H hidden size padded as the kernel wants it, L layers, V vocabulary, C classes.
"""

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from attnlstm.config import ModelConfig

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

Doubles = npt.NDArray[np.float64]
Weights = dict[str, Doubles]


class Folded(NamedTuple):
    """Weights of the recurrent part, gates in torch's order i, f, g, o. Padding units have weights of 0, and so
    states of 0.

    table: (2, V, 4, H), what each token adds to the gates of layer 0, by direction.
    projections: (L - 1, 2, 1 + 2 H, 4, H), biases and then input weights of the layers above.
    recurrents: (L, 2, H, 4, H). score: (2 H,), whose product with a state is its attention score.
    of_ngrams: (2, E, 4, H), input weights of layer 0 for the embeddings of n-grams; E is 0 where there are none.
    ngram_context: (E, 2 H), by which their sum over a row adds to its context.
    """

    table: Doubles
    projections: Doubles
    recurrents: Doubles
    score: Doubles
    of_ngrams: Doubles
    ngram_context: Doubles


def weights_of(network: "AttentionLSTM") -> Weights:
    """The network's parameters by name, as float64 arrays of their own."""
    return {name: weight.double().cpu().numpy().copy() for name, weight in network.state_dict().items()}


def padded(hidden_size: int, at_least: int) -> int:
    """The next power of two."""
    return max(at_least, 1 << (hidden_size - 1).bit_length())


def fold(weights: Weights, config: ModelConfig, H: int, *, sigmoid_scale: float) -> Folded:
    """The folded weights of a network; the score of another attention than the additive one is 0.

    sigmoid_scale: what the sums of the gates i, f and o are multiplied by, for kernels that compute a sigmoid
    from another function: 0.5 for sigmoid(x) = (1 + tanh(x / 2)) / 2.
    """
    scales = np.array([sigmoid_scale, sigmoid_scale, 1, sigmoid_scale])[:, None]

    def gates(matrix: Doubles) -> Doubles:  # (n, 4 gates x units) to (n, 4, H)
        by_gate = matrix.reshape(len(matrix), 4, config.hidden_size) * scales
        return np.pad(by_gate, ((0, 0), (0, 0), (0, H - by_gate.shape[2])))

    table, projections, recurrents, of_ngrams = [], [], [], []
    num_features = config.embedding_dim if config.longest_ngram > 1 else 0
    for layer, direction in itertools.product(range(config.num_layers), ("", "_reverse")):
        name = f"l{layer}{direction}"
        bias = weights[f"sequence.bias_ih_{name}"] + weights[f"sequence.bias_hh_{name}"]
        inputs = weights[f"sequence.weight_ih_{name}"].T  # (inputs, 4 gates x units), and so recurrent weights
        if layer == 0:
            of_ngrams.append(gates(inputs[:num_features]))
            table.append(gates(_product(weights["embedding.weight"], inputs) + bias))
        else:
            projections.append(np.concatenate([gates(bias[None]), _pad_states(gates(inputs), H)]))
        recurrents.append(_pad_rows(gates(weights[f"sequence.weight_hh_{name}"].T), H))
    # v . (W h + b) is (v W) . h plus a number that is the same for all tokens, which the softmax ignores.
    score = np.zeros((1, 2 * config.hidden_size))
    if config.attention == "additive":
        score = _product(weights["attention.dot_product.weight"], weights["attention.qk_weights.weight"])
    return Folded(
        np.stack(table),
        np.stack(projections).reshape(-1, 2, 1 + 2 * H, 4, H) if projections else np.empty((0, 2, 1 + 2 * H, 4, H)),
        np.stack(recurrents).reshape(-1, 2, H, 4, H),
        _pad_states(score[0], H),
        np.stack(of_ngrams),
        _pad_states(weights["ngram_context.weight"], H).T.copy() if num_features else np.zeros((0, 2 * H)),
    )


def fold_classifier(weights: Weights, config: ModelConfig, H: int) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Weights (inputs, outputs) and biases of both linear layers. The temperature divides the logits."""
    return (
        np.ascontiguousarray(_pad_states(weights["mlp.0.weight"].T, H)),
        weights["mlp.0.bias"],
        np.ascontiguousarray(weights["mlp.2.weight"].T / config.temperature),
        weights["mlp.2.bias"] / config.temperature,
    )


def _product(a: Doubles, b: Doubles) -> Doubles:
    """The matrix product, added up in the order of the inner index: a BLAS has an order for each processor."""
    total = np.zeros((len(a), b.shape[1]))
    for k in range(len(b)):
        total += a[:, k, None] * b[k]
    return total


def _pad_states(matrix: Doubles, H: int) -> Doubles:
    """(2 directions x units, ...) to (2 H, ...)."""
    return np.concatenate([_pad_rows(direction, H) for direction in np.split(matrix, 2)])


def _pad_rows(matrix: Doubles, H: int) -> Doubles:
    return np.pad(matrix, [(0, H - len(matrix))] + [(0, 0)] * (matrix.ndim - 1))
