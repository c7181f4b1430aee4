"""A checkpoint from Python: rows of every kind that people hold, and the same scores as in an output."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

import attnlstm
import storage
from attnlstm import Model
from builders import make_network
from storage.errors import RegistryError

TEXTS = ["ab", "", "c"]
IDS = [[5, 7, 11], [13, 17, 19]]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(make_network(), "v1", threads=1)


@pytest.mark.parametrize(
    "rows",
    [
        IDS,
        [bytes(IDS[0]), IDS[1]],
        [np.array(IDS[0]), tuple(IDS[1])],
        [torch.tensor(row) for row in IDS],
        np.array(IDS, np.uint16),
        torch.tensor(IDS),
        pa.array(IDS),
        pa.chunked_array([pa.array([bytes(row)]) for row in IDS]),
        pl.Series(IDS),
        pl.Series(IDS, dtype=pl.Array(pl.Int32, 3)),
        pl.Series([bytes(row) for row in IDS]),
        np.array([bytes(row) for row in IDS], dtype=object),
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_rows_of_any_kind_have_the_same_scores(rows: Any, model: Model) -> None:
    expected = model.score([bytes(row) for row in IDS])
    assert model.score(rows).equals(expected)
    np.testing.assert_array_equal(model.predict_proba(rows), expected["probabilities"].to_numpy())
    assert [weights.tolist() for weights in model.attention(rows)] == expected["weights"].to_list()
    assert model.predict(rows).tolist() == expected["prediction"].to_list()


def test_predictions_have_the_type_of_the_labels(model: Model) -> None:
    network = make_network()
    network.config = replace(network.config, classes=tuple("01234"), label_type="int64")
    typed = Model(network, "v")
    assert typed.score([[1], None])["prediction"].dtype == pl.Int64
    assert typed.predict([[1], [2]]).dtype == np.int64


def test_a_row_that_cannot_be_scored_has_no_results_and_says_why(model: Model) -> None:
    rows = [[1], None, [], [4242], [2]]
    frame = model.score(rows)
    assert frame["error"].to_list() == [None, "tokens are null", "no tokens", "a token id outside 0..41", None]
    assert frame["num_tokens"].to_list() == [1, None, 0, 1, 1]
    missing = [False, True, True, True, False]
    assert [each is None for each in model.predict(rows)] == missing
    assert [each is None for each in model.attention(rows)] == missing
    assert np.isnan(model.predict_proba(rows)).all(axis=1).tolist() == missing
    for column in ("prediction", "score", "probabilities", "weights"):
        assert frame[column].is_null().to_list() == missing


def test_no_rows_have_no_results(model: Model) -> None:
    assert model.predict([]).shape == (0,)
    assert model.predict_proba([]).shape == (0, 5)
    assert model.score([]).height == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text", "put it into a list"),
        ([1, 2, 3], "put it into a list"),
        (7, "this is a int"),
        (np.zeros(3), "float64"),
        ([1.5], "a sequence of token ids; not 1.5"),
        ([[1, 2.5]], r"a sequence of token ids; not \[1, 2.5\]"),
    ],
)
def test_what_are_no_rows_is_refused(rows: Any, message: str, model: Model) -> None:
    with pytest.raises(TypeError, match=message):
        model.predict(rows)


def test_scores_are_those_of_the_output(dataset: Path, trained: Any, scored: Any) -> None:
    model = attnlstm.load(str(trained.registry))
    assert model.version == trained.version
    output = storage.open_attention(str(scored.output)).collect()
    frame = pl.read_parquet(dataset)
    frame = frame.with_columns(model.score(frame["tokens"]))
    columns = ["id", "prediction", "score", "probabilities", "num_tokens", "error", "weights"]
    assert frame.select(columns).equals(output.select(columns))


def test_a_checkpoint_is_found_by_registry_version_or_folder(trained: Any) -> None:
    registry = str(trained.registry)
    expected = attnlstm.load(registry).predict_proba(["text"]).tolist()
    for place in ((registry, trained.version), (str(trained.folder),)):
        assert attnlstm.load(*place).predict_proba(["text"]).tolist() == expected
    with pytest.raises(RegistryError, match="nobody"):
        attnlstm.load(registry, "nobody")


def test_a_row_is_explained_by_what_erasing_its_tokens_does(model: Model) -> None:
    tokens = bytes([5, 7, 11, 13, 17, 19])
    found = model.explain(tokens)
    scores = model.score([tokens])
    assert found.prediction == scores["prediction"][0]
    assert found.weights.tolist() == scores["weights"][0].to_list()
    most_attended = int(found.weights.argmax())
    rest = tokens[:most_attended] + tokens[most_attended + 1 :]
    before, after = model.predict_proba([tokens, rest])[:, model.classes.index(found.prediction)]
    assert found.falls["most"][0] == pytest.approx(before - after)
    assert model.explain([5]).falls == {}
    with pytest.raises(ValueError, match="no tokens"):
        model.explain("")
