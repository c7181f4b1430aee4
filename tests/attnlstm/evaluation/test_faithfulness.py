"""Erasing tokens: what is left of each row, and figures for predictions that do and don't rest on attention."""

import json
from itertools import pairwise

import numpy as np
import pytest

from attnlstm.engines import Scores
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.evaluation import faithfulness
from attnlstm.network import AttentionLSTM
from builders import make_rows

TELLING = 9


def rows_of(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens 0 to 8 at random, with one TELLING token each, somewhere."""
    random = np.random.default_rng(163)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    values = random.integers(0, 9, offsets[-1]).astype(np.uint8)
    values[offsets[:-1] + random.integers(0, lengths)] = TELLING
    return values, offsets


class Reader:
    """Scores 0.9 for the first class where a row has a TELLING token, else 0.3; attends to it, or to anything but it.

    seen: the rows that it was given, call by call.
    """

    def __init__(self, *, attends_to_it: bool) -> None:
        self._weight = 50.0 if attends_to_it else 0.02
        self.seen: list[list[bytes]] = []

    def score(self, values: np.ndarray, offsets: np.ndarray) -> Scores:
        assert (np.diff(offsets) > 0).all()
        self.seen.append([values[start:end].tobytes() for start, end in pairwise(offsets)])
        telling = values == TELLING
        has = np.add.reduceat(telling, offsets[:-1], dtype=int) > 0
        first = np.where(has, 0.9, 0.3)
        weights = np.where(telling, self._weight, 1.0)
        weights /= np.repeat(np.add.reduceat(weights, offsets[:-1]), np.diff(offsets))
        return Scores(np.stack((first, 1 - first), axis=1).astype(np.float32), weights.astype(np.float32))


def test_attention_that_prediction_rests_on_is_found_faithful() -> None:
    found = faithfulness.measure(Reader(attends_to_it=True).score, *rows_of([20] * 60), seed=1)

    assert found is not None
    assert found["num_rows"] == 60
    assert found["probability"] == pytest.approx(0.9)
    erased, kept = found["comprehensiveness"], found["sufficiency"]
    assert erased["most"]["by_share"] == pytest.approx([0.6] * 5)
    assert erased["most"]["mean"] == erased["most"]["low"] == erased["most"]["high"] == pytest.approx(0.6)
    assert erased["least"]["by_share"] == pytest.approx([0] * 5)
    # 1, 1, 2, 4 and 10 of 20 tokens at random: the telling one is among them as often.
    assert erased["random"]["by_share"] == pytest.approx([0.03, 0.03, 0.06, 0.12, 0.3], abs=0.09)
    assert kept["most"]["by_share"] == pytest.approx([0] * 5)
    assert kept["least"]["by_share"] == pytest.approx([0.6] * 5)
    assert erased["gain"]["mean"] == pytest.approx(0.6 - erased["random"]["mean"])
    assert kept["gain"]["mean"] == pytest.approx(kept["random"]["mean"])
    assert erased["gain"]["low"] > 0.4
    assert "most attended tokens of a row lowers the predicted class's probability by 0.60 on average, random 10%" in (
        faithfulness.sentence(found)
    )
    assert faithfulness.sentence(found).endswith("60 rows): the weights point at tokens that predictions rest on.")


def test_attention_that_prediction_does_not_rest_on_is_found_out() -> None:
    found = faithfulness.measure(Reader(attends_to_it=False).score, *rows_of([20] * 60), seed=1)

    assert found is not None
    assert found["comprehensiveness"]["most"]["mean"] == pytest.approx(0)
    assert found["comprehensiveness"]["least"]["mean"] == pytest.approx(0.6)
    assert found["comprehensiveness"]["gain"]["high"] < 0
    assert faithfulness.sentence(found).endswith("the weights are no reasons, predictions rest on other tokens.")


def test_attention_that_says_nothing_gains_nothing() -> None:
    def score(values: np.ndarray, offsets: np.ndarray) -> Scores:
        scores = Reader(attends_to_it=True).score(values, offsets)
        return Scores(scores.probabilities, np.random.default_rng(len(values)).random(len(values), np.float32))

    found = faithfulness.measure(score, *rows_of([20] * 200), seed=1)

    assert found is not None
    assert found["comprehensiveness"]["gain"]["low"] < 0 < found["comprehensiveness"]["gain"]["high"]
    assert "they tell no more than chance" in faithfulness.sentence(found)


def test_interval_is_the_means_standard_error() -> None:
    found = faithfulness.measure(Reader(attends_to_it=True).score, *rows_of([20] * 60), seed=1)

    assert found is not None
    figures = found["comprehensiveness"]["random"]
    assert figures["deviation"] > 0
    assert figures["high"] - figures["mean"] == pytest.approx(1.96 * figures["deviation"] / 60**0.5)
    assert figures["mean"] - figures["low"] == pytest.approx(1.96 * figures["deviation"] / 60**0.5)
    assert figures["mean"] == pytest.approx(np.mean(figures["by_share"]))


def test_rows_keep_their_other_tokens_in_order_and_at_least_one() -> None:
    reader = Reader(attends_to_it=True)
    values, offsets = rows_of([2, 3, 50])
    faithfulness.measure(reader.score, values, offsets, seed=1)

    whole, *others = reader.seen
    assert whole == [values[start:end].tobytes() for start, end in pairwise(offsets)]
    # Of most attended, random and least attended tokens, each share is erased in turn, then each is kept.
    num_shares = len(faithfulness.SHARES)
    assert len(others) == 2 * 3 * num_shares
    assert others[0] == [row.replace(bytes([TELLING]), b"") for row in whole]
    assert others[num_shares] == [bytes([TELLING])] * 3
    assert [len(row) for row in others[num_shares - 1]] == [1, 1, 25]  # a half erased: of 3 tokens, 2
    for start in range(0, len(others), 2 * num_shares):
        for place in range(start, start + num_shares):
            for row, without, only in zip(whole, others[place], others[place + num_shares], strict=True):
                assert sorted(without + only) == sorted(row)
                assert _is_in_order(without, row)
                assert _is_in_order(only, row)


def _is_in_order(some: bytes, of: bytes) -> bool:
    rest = iter(of)
    return all(token in rest for token in some)


def test_rows_of_one_token_are_left_out_and_without_others_there_is_no_figure() -> None:
    reader = Reader(attends_to_it=True)
    found = faithfulness.measure(reader.score, *rows_of([1, 4, 1, 5]), seed=1)

    assert found is not None
    assert found["num_rows"] == 2
    assert [len(row) for row in reader.seen[0]] == [4, 5]
    assert faithfulness.measure(reader.score, *rows_of([1, 1]), seed=1) is None


def test_seed_chooses_the_rows_and_the_random_tokens() -> None:
    rows = rows_of([20] * 60)

    def measured(seed: int) -> list[list[bytes]]:
        reader = Reader(attends_to_it=True)
        found = faithfulness.measure(reader.score, *rows, seed=seed, max_rows=11)
        assert found is not None
        assert found["num_rows"] == 11
        return reader.seen

    assert measured(1) == measured(1)
    assert measured(1)[0] != measured(2)[0]


def test_networks_are_measured_and_the_figures_are_json(network: AttentionLSTM) -> None:
    found = faithfulness.measure(TorchEngine(network, "cpu").score, *make_rows([1, 2, 13, 40, 7]), seed=1)

    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "4 rows" in faithfulness.sentence(found)
