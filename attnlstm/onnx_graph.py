"""A network as an ONNX graph, for programs that have neither torch nor this package.

Owns the graph, which is written out node by node (torch's exporters trace neither its reversed rows nor lengths of
their own for each row), and the check against an engine without which no graph is given away. Padding, the temperature
and the hash of n-grams are the graph's own matter: it takes token ids alone. Knows nothing about registries or files.
Needs the extra `onnx`.
Shape letters: B rows, T time steps (the longest row), E embedding features, D features of a hidden state, N heads, C
classes.
"""

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attnlstm.batching import pad
from attnlstm.config import ModelConfig
from attnlstm.ngrams import FACTOR, PRIME

if TYPE_CHECKING:
    import onnx

    from attnlstm.network import AttentionLSTM

OPSET, IR_VERSION = 17, 8
"""Of 2022: later ones have nothing for this graph, and older readers know these."""

TOLERANCE = 1e-5
"""The largest difference to the engine, in a probability or in a weight of attention."""

_CHECKED_LENGTHS = ((1,), (1, 2, 3, 5, 8, 13, 21, 34), (301, 7, 64, 299, 1, 150), (2053, 400))
"""Rows of each batch that is checked: alone, short, ragged, and long beside much padding."""

Array = npt.NDArray[Any]


class OnnxError(ValueError):
    """A network that can't be given away as ONNX, and why."""


def checked_onnx(network: "AttentionLSTM", about: dict[str, str] | None = None) -> bytes:
    """The bytes of an ONNX file: token_ids int64 (B, T) to probabilities (B, C) and attention_weights (B, T).

    Rows are left-aligned, with the padding id behind their tokens; B and T may be anything. Probabilities are after the
    temperature; weights are 0 on padding. The file's metadata has `classes` (a JSON list, in the order of
    probabilities), `label_type`, `padding_id`, and what `about` says.
    Raises OnnxError without the extra `onnx`, for a network that has something for which there is no graph, and if ONNX
    Runtime and the engine differ on random ragged rows by more than TOLERANCE.
    """
    content: bytes = to_onnx(network, about).SerializeToString()
    difference = largest_difference(content, network)
    if not difference <= TOLERANCE:
        raise OnnxError(
            f"ONNX Runtime's scores differ from the engine's by {difference:.2g}, which is more than {TOLERANCE:g}, so "
            "the graph is not given away. Float32 may be too coarse for these weights."
        )
    return content


def largest_difference(content: bytes, network: "AttentionLSTM") -> float:
    """Between ONNX Runtime and the engine, in any probability or weight of random ragged batches; NaN if one is."""
    from attnlstm.engines import open_engine

    onnxruntime = _imported("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    engine, padding_id = open_engine(network, "cpu"), network.config.padding_id
    random = np.random.default_rng(0)
    differences = []
    for lengths in _CHECKED_LENGTHS:
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        values = random.integers(0, padding_id, offsets[-1])
        token_ids, _ = pad(values, offsets, np.arange(len(lengths)), padding_id)
        probabilities, weights = session.run(None, {"token_ids": token_ids.astype(np.int64)})
        scores = engine.score(values, offsets)
        is_token = token_ids != padding_id
        differences += [
            probabilities - scores.probabilities,
            weights[is_token] - scores.attention_weights,
            weights[~is_token],
        ]
    return float(np.abs(np.concatenate([each.ravel() for each in differences])).max())


def to_onnx(network: "AttentionLSTM", about: dict[str, str] | None = None) -> "onnx.ModelProto":
    """The graph of `checked_onnx`, not yet checked against an engine."""
    onnx = _imported("onnx")
    helper, config = onnx.helper, network.config
    graph = _Graph(onnx)
    weights = _Weights({name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()})

    mask = graph.add("Less", "token_ids", graph.constant(np.int64(config.padding_id)))  # (B, T)
    lengths = graph.add("ReduceSum", graph.cast(mask, np.int32), graph.constant([1]), keepdims=0)  # (B,)
    steps_first = graph.add("Transpose", "token_ids", perm=[1, 0])  # ONNX Runtime's LSTM takes no other layout
    x = graph.add("Gather", graph.constant(weights["embedding.weight"]), steps_first)
    of_ngrams = _of_ngrams(graph, steps_first, weights, config) if config.longest_ngram > 1 else None
    if of_ngrams:
        x = graph.add("Add", x, of_ngrams)
    states = _hidden_states(graph, x, lengths, weights, config)
    pool = _additive if config.attention == "additive" else _multihead
    context, attention_weights = pool(graph, states, mask, weights, config)
    if of_ngrams:
        total = graph.add("ReduceSum", of_ngrams, graph.constant([0]), keepdims=0)  # (B, E), of which padding has none
        root = graph.add("Sqrt", graph.add("Unsqueeze", graph.cast(lengths, np.float32), graph.constant([1])))
        context_weights = graph.constant(weights["ngram_context.weight"])
        context = graph.add("Gemm", graph.add("Div", total, root), context_weights, context, transB=1)
    hidden = graph.add("Relu", graph.add("Gemm", context, *_linear(graph, weights, "mlp.0"), transB=1))
    logits = graph.add("Gemm", hidden, *_linear(graph, weights, "mlp.2"), transB=1)
    calibrated = graph.add("Div", logits, graph.constant(np.float32(config.temperature)))
    graph.add("Softmax", calibrated, axis=1, outputs=["probabilities"])
    graph.add("Identity", attention_weights, outputs=["attention_weights"])
    if weights.unused:
        raise OnnxError(f"this network can't be written as ONNX: there is no graph yet for {', '.join(weights.unused)}")

    describe, kinds = helper.make_tensor_value_info, onnx.TensorProto
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "attnlstm",
            inputs=[describe("token_ids", kinds.INT64, ["B", "T"])],
            outputs=[
                describe("probabilities", kinds.FLOAT, ["B", config.num_classes]),
                describe("attention_weights", kinds.FLOAT, ["B", "T"]),
            ],
            initializer=graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="attnlstm",
    )
    known = {
        "classes": json.dumps(config.classes, ensure_ascii=False),
        "label_type": config.label_type,
        "padding_id": str(config.padding_id),
    }
    helper.set_model_props(model, known | (about or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants in the order in which they are added; values are called after what makes them."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        """Add a node; gives the name of its first output."""
        outputs = outputs or [f"{operator.lower()}_{len(self.nodes)}"]
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def constant(self, value: Any) -> str:
        """Add a constant, a float32 or int64 array or a number of Python's; gives its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def cast(self, value: str, to: type[np.generic]) -> str:
        return self.add("Cast", value, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))


class _Weights:
    """A network's parameters by name, and which of them the graph has not taken."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self.unused = list(arrays)

    def __getitem__(self, name: str) -> Array:
        if name in self.unused:
            self.unused.remove(name)
        return self._arrays[name]


def _of_ngrams(graph: _Graph, token_ids: str, weights: _Weights, config: ModelConfig) -> str:
    """token_ids (T, B) to the sums of the embeddings of the n-grams that end at each, as `attnlstm.ngrams` has them."""
    axis, first = graph.constant([0]), graph.constant([1])
    next_hash = graph.add("Add", token_ids, graph.constant(np.int64(1)))
    is_shown = graph.add("Less", token_ids, graph.constant(np.int64(config.padding_id)))
    zeros = graph.add("Mul", graph.add("Slice", token_ids, axis, first, axis), graph.constant(np.int64(0)))  # (1, B)
    hashed, is_there = next_hash, graph.cast(is_shown, np.int64)
    at_start, is_marker = config.num_embeddings + 1, 1
    found = []

    def before(value: str, start: int) -> str:
        """The same at the token before, and `start` at the first."""
        beginning = graph.add("Add", zeros, graph.constant(np.int64(start)))
        return graph.add("Concat", beginning, graph.add("Slice", value, axis, graph.constant([-1]), axis), axis=0)

    for table in weights["ngrams"]:
        times = graph.add("Mul", before(hashed, at_start), graph.constant(np.int64(FACTOR)))
        hashed = graph.add("Mod", graph.add("Add", times, next_hash), graph.constant(np.int64(PRIME)))
        is_there = graph.add("Mul", before(is_there, is_marker), graph.cast(is_shown, np.int64))
        at_start, is_marker = 0, 0
        bucket = graph.add("Mod", hashed, graph.constant(np.int64(config.ngram_buckets)))
        # Where there is none, a row of zeros behind the last bucket.
        bucket = graph.add("Where", graph.cast(is_there, np.bool_), bucket, graph.constant(np.int64(len(table))))
        padded = np.concatenate([table, np.zeros_like(table[:1])])
        found.append(graph.add("Gather", graph.constant(padded), bucket))
    return graph.add("Sum", *found)


def _hidden_states(graph: _Graph, x: str, lengths: str, weights: _Weights, config: ModelConfig) -> str:
    """(T, B, features) to the last layer's states (B, T, D): 0 on padding, which the backward direction passes over."""
    as_features = graph.constant([0, 0, -1])
    for layer in range(config.num_layers):
        w, r, *biases = (
            _directions(weights, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        parameters = [graph.constant(each) for each in (w, r, np.concatenate(biases, axis=1))]
        y = graph.add(
            "LSTM", x, *parameters, lengths, hidden_size=config.hidden_size, direction="bidirectional"
        )  # (T, 2, B, H)
        x = graph.add("Reshape", graph.add("Transpose", y, perm=[0, 2, 1, 3]), as_features)
    return graph.add("Transpose", x, perm=[1, 0, 2])


def _directions(weights: _Weights, name: str) -> Array:
    """Both directions of one parameter (2, 4 H, ...), gates from torch's order i, f, g, o to ONNX's i, o, f, g."""
    both = np.stack([weights[f"sequence.{name}{suffix}"] for suffix in ("", "_reverse")])
    i, f, g, o = np.split(both, 4, axis=1)
    return np.concatenate((i, o, f, g), axis=1)


def _additive(graph: _Graph, states: str, mask: str, weights: _Weights, config: ModelConfig) -> tuple[str, str]:
    """Context (B, D) and weights (B, T). A constant added to every score, as the bias does, changes no weight."""
    _ = weights["attention.qk_weights.bias"]
    folded = weights["attention.dot_product.weight"] @ weights["attention.qk_weights.weight"]  # (1, D)
    axis_1, axis_2 = graph.constant([1]), graph.constant([2])
    scores = graph.add("Squeeze", graph.add("MatMul", states, graph.constant(folded.T)), axis_2)
    attention_weights = _masked_softmax(graph, scores, mask)
    context = graph.add("MatMul", graph.add("Unsqueeze", attention_weights, axis_1), states)
    return graph.add("Squeeze", context, axis_1), attention_weights


def _multihead(graph: _Graph, states: str, mask: str, weights: _Weights, config: ModelConfig) -> tuple[str, str]:
    """As `attnlstm.attention.summed_attention`: context (B, D) and weights (B, T). Holds all scores, (B, N, T, T)."""
    size, heads = 2 * config.hidden_size, config.num_heads
    into = np.split(weights["attention.in_proj_weight"], 3)
    biases = np.split(weights["attention.in_proj_bias"], 3)

    def of_heads(name: str, weight: Array, bias: Array, scale: float = 1.0) -> str:
        folded = (weight.astype(np.float64) @ weights[f"{name}.weight"]).T * scale  # two projections, one after another
        x = graph.add("MatMul", states, graph.constant(folded.astype(np.float32)))
        x = graph.add("Add", x, graph.constant((bias * scale).astype(np.float32)))
        split = graph.add("Reshape", x, graph.constant([0, 0, heads, size // heads]))
        return graph.add("Transpose", split, perm=[0, 2, 1, 3])  # (B, N, T, D / N)

    q = of_heads("q", into[0], biases[0], math.sqrt(heads / size))
    k, v = of_heads("k", into[1], biases[1]), of_heads("v", into[2], biases[2])
    scores = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    over_keys = _masked_softmax(graph, scores, graph.add("Unsqueeze", mask, graph.constant([1, 2])))
    is_query = graph.cast(mask, np.float32)
    received = graph.add("MatMul", graph.add("Unsqueeze", is_query, graph.constant([1, 2])), over_keys)  # (B, N, 1, T)
    num_tokens = graph.add("ReduceSum", is_query, graph.constant([1]), keepdims=1)  # (B, 1)
    mean = graph.add("ReduceMean", received, axes=[1, 2], keepdims=0)
    context = graph.add("Reshape", graph.add("MatMul", received, v), graph.constant([0, size]))
    out, bias = _linear(graph, weights, "attention.out_proj")
    # Every real query adds the bias of the output projection once.
    context = graph.add("Add", graph.add("Gemm", context, out, transB=1), graph.add("Mul", num_tokens, bias))
    return context, graph.add("Div", mean, num_tokens)


def _masked_softmax(graph: _Graph, scores: str, mask: str) -> str:
    lowest = graph.constant(np.finfo(np.float32).min)
    return graph.add("Softmax", graph.add("Where", mask, scores, lowest), axis=-1)


def _linear(graph: _Graph, weights: _Weights, name: str) -> tuple[str, str]:
    return graph.constant(weights[f"{name}.weight"]), graph.constant(weights[f"{name}.bias"])


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise OnnxError(f"{name} is not installed; the extra `onnx` has it: pip install 'attnlstm[onnx]'") from None
