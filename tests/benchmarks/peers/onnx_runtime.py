"""ONNX Runtime on batches sorted by length: its LSTM takes the lengths of rows, so padding is no matter.

The graph is written out, since torch's exporter traces no packed sequence, and its predecessor's graph is the slower
for what it does around the LSTM. Batches go to threads of one core each, or each batch to all cores.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from attnlstm.network import AttentionLSTM
from script import Batches, Floats, Offsets, Rows, Score, Task, Values, load_network, sorted_batches

CANDIDATES: list[dict[str, Any]] = [
    *({"batch_rows": rows, "side_by_side": True} for rows in (16, 64, 256, 1024)),
    {"batch_rows": 256, "side_by_side": False},
]
OPSET, IR_VERSION = 17, 8


def open_peer(task: Task, batch_rows: int, side_by_side: bool) -> Score:
    network = load_network(task.checkpoint)
    workers, threads = (task.threads, 1) if side_by_side else (1, task.threads)
    session = open_session(network, threads)
    pool = ThreadPoolExecutor(workers)

    def score(values: Values, offsets: Offsets) -> tuple[Floats, Floats]:
        batches = Batches(values, offsets, network.config.num_classes, network.config.padding_id)

        def forward(rows: Rows) -> None:
            token_ids, lengths = batches.padded(rows)
            inputs = {"token_ids": np.ascontiguousarray(token_ids.T), "lengths": lengths.astype(np.int32)}
            batches.keep(rows, *session.run(None, inputs))

        list(pool.map(forward, sorted_batches(offsets, batch_rows)))
        return batches.probabilities, batches.weights

    return score


def open_session(network: AttentionLSTM, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    graph = to_onnx(network).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def to_onnx(network: AttentionLSTM) -> onnx.ModelProto:
    """token_ids int32 (T, B) and lengths int32 (B,) to probabilities (B, C) and attention weights (B, T)."""
    config = network.config
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    constants: dict[str, npt.NDArray[Any]] = {
        "embedding": weights["embedding.weight"],
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "score": (weights["attention.dot_product.weight"] @ weights["attention.qk_weights.weight"]).T,
        "lowest": np.array(np.finfo(np.float32).min),
        "as_features": np.array([0, 0, -1]),
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
        "temperature": np.array(config.temperature, np.float32),
    }
    nodes = [helper.make_node("Gather", ["embedding", "token_ids"], ["x0"])]
    for layer in range(config.num_layers):
        for kind, name in (("W", "weight_ih"), ("R", "weight_hh")):
            constants[f"{kind}{layer}"] = _directions(weights, name, layer)
        biases = [_directions(weights, name, layer) for name in ("bias_ih", "bias_hh")]
        constants[f"B{layer}"] = np.concatenate(biases, axis=1)
        inputs = [f"x{layer}", f"W{layer}", f"R{layer}", f"B{layer}", "lengths"]
        nodes += [
            helper.make_node(
                "LSTM", inputs, [f"y{layer}"], hidden_size=config.hidden_size, direction="bidirectional"
            ),  # (T, 2, B, H)
            helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{layer}", "as_features"], [f"x{layer + 1}"]),  # (T, B, 2 H)
        ]
    nodes += [
        helper.make_node("Transpose", [f"x{config.num_layers}"], ["states"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["states", "score"], ["scores_column"]),
        helper.make_node("Squeeze", ["scores_column", "axis_2"], ["scores"]),
        helper.make_node("Shape", ["token_ids"], ["num_steps_vector"], start=0, end=1),
        helper.make_node("Squeeze", ["num_steps_vector"], ["num_steps"]),
        helper.make_node("Range", ["zero", "num_steps", "one"], ["steps"]),
        helper.make_node("Cast", ["lengths"], ["lengths_64"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["lengths_64", "axis_1"], ["ends"]),
        helper.make_node("Less", ["steps", "ends"], ["mask"]),
        helper.make_node("Where", ["mask", "scores", "lowest"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=1),
        helper.make_node("Unsqueeze", ["weights", "axis_1"], ["weights_row"]),
        helper.make_node("MatMul", ["weights_row", "states"], ["context_row"]),
        helper.make_node("Squeeze", ["context_row", "axis_1"], ["context"]),
    ]
    for name in ("mlp.0", "mlp.2"):
        constants |= {f"{name}.{part}": weights[f"{name}.{part}"] for part in ("weight", "bias")}
    nodes += [
        helper.make_node("Gemm", ["context", "mlp.0.weight", "mlp.0.bias"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "mlp.2.weight", "mlp.2.bias"], ["logits"], transB=1),
        helper.make_node("Div", ["logits", "temperature"], ["calibrated"]),
        helper.make_node("Softmax", ["calibrated"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "attnlstm",
        inputs=[
            helper.make_tensor_value_info("token_ids", TensorProto.INT32, ["T", "B"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        outputs=[
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", config.num_classes]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["B", "T"]),
        ],
        initializer=[numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _directions(weights: dict[str, Floats], name: str, layer: int) -> Floats:
    """Both directions of one parameter (2, 4 H, ...), gates from torch's order i, f, g, o to ONNX's i, o, f, g."""
    both = np.stack([weights[f"sequence.{name}_l{layer}{suffix}"] for suffix in ("", "_reverse")])
    i, f, g, o = np.split(both, 4, axis=1)
    return np.concatenate((i, o, f, g), axis=1)
