"""Where each parameter goes in the arrays that the fused step computes with, and where its gradient comes from.

Owns the layout of weights: what a parameter's place is follows once from the sizes, as arrays of indices, so each step
moves all weights by one look-up, and all gradients back by another. Knows numpy and shapes only.

Shape letters: H hidden size, D that padded to whole vectors, E embedding features, F those padded likewise, L layers,
V vocabulary, A rows of the attention's matrix, C classes. Columns are the four gates' sums: (panels, 4, lanes), a
panel being the hidden units of a vector.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from attnlstm.config import ModelConfig

STATE_LANES = 16
"""Sizes are padded to a multiple of this, whatever the vectors of a processor."""

Indices = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


def padded(size: int) -> int:
    return -(-size // STATE_LANES) * STATE_LANES


class Segments:
    """Named arrays of these shapes in one flat array, each of which begins where a cache line does."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        ends = itertools.accumulate(padded(math.prod(shape)) for shape in shapes.values())
        self._starts = dict(zip(shapes, (0, *ends), strict=False))
        self.size = sum(padded(math.prod(shape)) for shape in shapes.values())

    def views(self, flat: npt.NDArray[Any]) -> Arrays:
        return {
            name: flat[self._starts[name] : self._starts[name] + math.prod(shape)].reshape(shape)
            for name, shape in self._shapes.items()
        }


class Layout:
    """Of a network with additive attention, for vectors of so many lanes.

    weights, of_group, gradients: the arrays of weights, of the gradients of a group of rows, and of all gradients, the
    former among them: what they are called, and their shapes.
    source: int64, for each of the weights its place among the parameters end to end, or that after the last of them,
    where 0 must be. scale: float32, what it is multiplied by: the sums of gates i, f and o are halved. target: int64,
    for each parameter the place of its gradient, or that after the last of them, where 0 must be.
    """

    def __init__(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], lanes: int) -> None:
        """shapes: of all parameters, in order, but those of n-grams."""
        H, L, V, C = config.hidden_size, config.num_layers, config.num_embeddings, config.num_classes
        D, F = padded(H), padded(config.embedding_dim)
        A = shapes["attention.dot_product.weight"][1]
        has_ngrams = config.longest_ngram > 1
        of_first = {"first": (2, F, 4 * D), "first_bias": (2, 4 * D)}
        head = {"hidden": (H, 2 * D), "hidden_bias": (H,), "class": (C, H), "class_bias": (C,)}
        self.weights = Segments(
            {
                "embedding": (V, F),
                **{f"bias_{kind}": (L, 2, 4 * D) for kind in ("ih", "hh")},
                **{f"first_{way}": (2, F * 4 * D) for way in ("forward", "backward")},
                **{f"in_{way}": (L - 1, 2, 2 * D * 4 * D) for way in ("forward", "backward")},
                **{f"own_{way}": (L, 2, D * 4 * D) for way in ("forward", "backward")},
                **head,
                "hidden_in": (2 * D, H),
                "class_in": (H, C),
                "keys": (A, 2 * D),
                "query": (A,),
                "ngram_context": (F if has_ngrams else 0, 2 * D),
            }
        )
        # Of those of a group, `table` holds what its tokens add to the sums of the first layer; with n-grams, no token
        # adds the same everywhere.
        self.of_group = Segments(
            {
                "table": (2, 0 if has_ngrams else V, 4 * D),
                **(of_first if has_ngrams else {}),
                "ngram_context": (F if has_ngrams else 0, 2 * D),
                "biases": (L - 1, 2, 4 * D),
                "in": (L - 1, 2, 2 * D, 4 * D),
                "own": (L, 2, D, 4 * D),
                "score": (2 * D,),
                **head,
            }
        )
        self.gradients = Segments(
            {
                **self.of_group._shapes,
                "embedding": (V, F),
                **of_first,
                "keys": (A, 2 * D),
                "query": (A,),
            }
        )
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.num_parameters = zero = sum(sizes)
        ends = itertools.accumulate(sizes)
        places = {
            name: np.arange(end - size, end).reshape(shape)
            for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True)
        }

        columns = _columns(H, D, lanes)
        of_states = np.concatenate([np.arange(H), D + np.arange(H)])
        self.source = np.full(self.weights.size, zero, np.int64)
        self.scale = np.ones(self.weights.size, np.float32)
        self.target = np.empty(self.num_parameters, np.int64)
        source, scale = self.weights.views(self.source), self.weights.views(self.scale)
        found = self.gradients.views(np.arange(self.gradients.size))
        halves = np.full(4 * D, 0.5, np.float32)
        halves[columns.reshape(4, H)[2]] = 1  # gate g is a tanh as it is

        def take_gradient(name: str, gradient: Indices) -> None:
            self.target[places[name].ravel()] = gradient.ravel()

        def put(name: str, inputs: Indices, num_inputs: int, to: str, at: tuple[int, ...], gradient: Indices) -> None:
            """A matrix (4 H, inputs): into rows `inputs` of (num_inputs, columns), and that into blocks for tiles."""
            matrix = np.full((num_inputs, 4 * D), zero)
            matrix[inputs[:, None], columns] = places[name].T
            width = 4 * lanes if to == "own" else _block(4 * D, lanes)
            source[f"{to}_forward"][at] = _blocks(matrix, width).ravel()
            scale[f"{to}_forward"][at] = _blocks(np.broadcast_to(halves, matrix.shape), width).ravel()
            source[f"{to}_backward"][at] = _blocks(matrix.T, _block(num_inputs, lanes)).ravel()
            take_gradient(name, gradient[inputs[:, None], columns].T)

        for layer, direction in itertools.product(range(L), range(2)):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            at = layer, direction
            put(f"sequence.weight_hh_{suffix}", np.arange(H), D, "own", at, found["own"][at])
            name = f"sequence.weight_ih_{suffix}"
            if layer == 0:
                put(name, np.arange(config.embedding_dim), F, "first", (direction,), found["first"][direction])
            else:
                put(name, of_states, 2 * D, "in", (layer - 1, direction), found["in"][layer - 1, direction])
            of_biases = found["biases"][layer - 1, direction] if layer else found["first_bias"][direction]
            for kind in ("ih", "hh"):
                source[f"bias_{kind}"][at][columns] = places[f"sequence.bias_{kind}_{suffix}"]
                scale[f"bias_{kind}"][at] = halves
                take_gradient(f"sequence.bias_{kind}_{suffix}", of_biases[columns])

        for to, name in (("hidden", "mlp.0"), ("class", "mlp.2")):
            inputs = of_states if to == "hidden" else np.arange(H)
            source[to][:, inputs] = places[f"{name}.weight"]
            source[f"{to}_in"][inputs] = places[f"{name}.weight"].T
            source[f"{to}_bias"][:] = places[f"{name}.bias"]
            take_gradient(f"{name}.weight", found[to][:, inputs])
            take_gradient(f"{name}.bias", found[f"{to}_bias"])
        source["embedding"][:, : config.embedding_dim] = places["embedding.weight"]
        take_gradient("embedding.weight", found["embedding"][:, : config.embedding_dim])
        source["keys"][:, of_states] = places["attention.qk_weights.weight"]
        take_gradient("attention.qk_weights.weight", found["keys"][:, of_states])
        source["query"][:] = places["attention.dot_product.weight"][0]
        take_gradient("attention.dot_product.weight", found["query"][None])
        if has_ngrams:
            features = np.arange(config.embedding_dim)[:, None]
            source["ngram_context"][features, of_states] = places["ngram_context.weight"].T
            take_gradient("ngram_context.weight", found["ngram_context"][features, of_states].T)
        # The same number added to all scores of a row changes nothing: a gradient of 0, which padding of keys has.
        nothing = self.gradients.size
        take_gradient("attention.qk_weights.bias", np.full(A, nothing))


def _columns(H: int, D: int, lanes: int) -> Indices:
    """Where each of the rows of torch's matrices, (4, H), is among the columns: int64 (4 H,)."""
    places = np.arange(4 * D).reshape(D // lanes, 4, lanes).swapaxes(0, 1).reshape(4, D)
    return places[:, :H].ravel()


def _block(num_columns: int, lanes: int) -> int:
    """Columns of a block of a product: two vectors, or one if their number is odd."""
    return 2 * lanes if num_columns % (2 * lanes) == 0 else lanes


def _blocks(matrix: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """(inputs, columns) to (blocks, inputs, columns of a block)."""
    return np.moveaxis(matrix.reshape(len(matrix), -1, width), 1, 0)
