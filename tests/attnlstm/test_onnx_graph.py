"""Networks as ONNX: ONNX Runtime gives the engine's scores for any batch, and what it can't give is refused."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from attnlstm import onnx_graph
from attnlstm.batching import pad
from attnlstm.config import ModelConfig
from attnlstm.engines import Scores
from attnlstm.network import AttentionLSTM
from attnlstm.onnx_graph import OnnxError, checked_onnx, to_onnx
from builders import check_scores, make_network, make_rows


@pytest.mark.parametrize("lengths", [[1], [5, 1, 300, 17], [2500, 3]], ids=["alone", "ragged", "long"])
def test_onnx_runtime_gives_every_rows_scores_whatever_is_beside_it(network: AttentionLSTM, lengths: list[int]) -> None:
    session = onnxruntime.InferenceSession(checked_onnx(network))
    values, offsets = make_rows(lengths)
    token_ids, _ = pad(values, offsets, np.arange(len(lengths)), network.config.padding_id)

    probabilities, weights = session.run(None, {"token_ids": token_ids.astype(np.int64)})

    is_token = token_ids != network.config.padding_id
    assert probabilities.shape == (len(lengths), 5)
    assert (weights[~is_token] == 0).all()
    check_scores(network, Scores(probabilities, weights[is_token]), values, offsets, atol=1e-5)


def test_the_file_says_what_its_probabilities_are_of_and_has_the_temperature_inside() -> None:
    config = ModelConfig(classes=("ä", "b"), temperature=1.7)
    session = onnxruntime.InferenceSession(checked_onnx(AttentionLSTM(config).eval(), {"version": "v1"}))
    about = session.get_modelmeta().custom_metadata_map

    assert json.loads(about.pop("classes")) == ["ä", "b"]
    assert about == {"label_type": "string", "padding_id": "256", "version": "v1"}


def test_what_differs_from_the_engine_is_not_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(hidden_size=11, temperature=1.7)
    other = make_network(hidden_size=11)
    monkeypatch.setattr(onnx_graph, "to_onnx", lambda *_: to_onnx(other))
    with pytest.raises(OnnxError, match=r"scores differ from the engine's by 0\.\d+, which is more than 1e-05"):
        checked_onnx(network)


def test_weights_that_the_graph_has_no_place_for_are_refused() -> None:
    network = make_network(hidden_size=11)
    network.novelty = torch.nn.Linear(2, 3, bias=False)
    with pytest.raises(OnnxError, match=r"can't be written as ONNX: there is no graph yet for novelty\.weight"):
        to_onnx(network)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(OnnxError, match=r"onnx is not installed; .* pip install 'attnlstm\[onnx\]'"):
        to_onnx(make_network(hidden_size=11))
