"""Whether the tokens that a network attends to are the ones that its prediction rests on.

Owns the measure: tokens are erased from rows, or all others are, and the rows are scored again. Knows numpy only; how
rows are scored is the caller's.

Attention weights sum to 1 and look like an explanation; whether they are one is disputed (Jain and Wallace 2019,
"Attention is not Explanation"; Wiegreffe and Pinter 2019, "Attention is not not Explanation"), and depends on the
network at hand. So each checkpoint is measured, after DeYoung et al. 2020 ("ERASER", section 4): comprehensiveness is
how far the predicted class's probability falls when the attended tokens are erased, sufficiency how far it falls when
nothing else is left. A figure alone says little, since any erasure makes a row unlike those that the network knows;
what counts is the difference to erasing as many random tokens, or the least attended.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from attnlstm.engines import Scores

Integers = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]
Score = Callable[[Integers, Indices], Scores]

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of a row's tokens that are erased, or kept: those of DeYoung et al. 2020, whose mean is reported (AOPC)."""

_SPOKEN_SHARE = 0.1  # of which `sentence` speaks
_NORMAL_95 = 1.96


def measure(
    score: Score, values: Integers, offsets: Indices, *, seed: int, max_rows: int = 500
) -> dict[str, Any] | None:
    """Figures that fit into JSON; None if no row has two tokens, so that one can be erased and one is left.

    score: as `Engine.score`. values, offsets: ragged rows that were not trained on.
    seed: chooses the rows, where there are more than max_rows, and the random tokens.
    Returns num_rows, shares, probability (mean, of the predicted class, before anything is erased) and, for
    comprehensiveness and sufficiency, by what was taken: "most" attended, "random" and "least" attended, the mean
    fall of that probability, for each share and over all with its 95 % interval and standard deviation between rows;
    and "gain", the most attended against random ones: positive where attention tells more than chance.
    At least one token is erased or kept, and at least one is left.
    """
    random = np.random.default_rng(seed)
    long_enough = np.flatnonzero(np.diff(offsets) > 1)
    if not len(long_enough):
        return None
    chosen = np.sort(random.choice(long_enough, min(max_rows, len(long_enough)), replace=False))
    rows = _Rows.of(values, offsets, chosen)
    scores = score(rows.values, rows.offsets)
    places = np.arange(len(rows.lengths)), scores.probabilities.argmax(axis=1)
    before = scores.probabilities[places].astype(np.float64)

    def falls(keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        left = rows.only(keep)
        fall: npt.NDArray[np.float64] = before - score(left.values, left.offsets).probabilities[places]
        return fall

    attention = scores.attention_weights
    ranks = {
        "most": rows.ranks(-attention),
        "random": rows.ranks(random.random(len(rows.values))),
        "least": rows.ranks(attention),
    }
    comprehensiveness, sufficiency = {}, {}
    for name, rank in ranks.items():
        taken = [rank < np.repeat(rows.num_taken(share), rows.lengths) for share in SHARES]
        comprehensiveness[name] = np.array([falls(~tokens) for tokens in taken])
        sufficiency[name] = np.array([falls(tokens) for tokens in taken])
    return {
        "num_rows": len(chosen),
        "shares": list(SHARES),
        "probability": float(before.mean()),
        "comprehensiveness": {
            **{name: _figures(fall) for name, fall in comprehensiveness.items()},
            "gain": _figures(comprehensiveness["most"] - comprehensiveness["random"]),
        },
        "sufficiency": {
            **{name: _figures(fall) for name, fall in sufficiency.items()},
            "gain": _figures(sufficiency["random"] - sufficiency["most"]),
        },
    }


def sentence(found: Mapping[str, Any]) -> str:
    """What `measure` found, for people."""
    place = found["shares"].index(_SPOKEN_SHARE)
    most, random, least = (found["comprehensiveness"][name]["by_share"][place] for name in ("most", "random", "least"))
    gain = found["comprehensiveness"]["gain"]
    if gain["low"] > 0:
        verdict = "the weights point at tokens that predictions rest on"
    elif gain["high"] < 0:
        verdict = "the weights are no reasons, predictions rest on other tokens"
    else:
        verdict = "the weights are no reasons, they tell no more than chance about what predictions rest on"
    lowest, highest = found["shares"][0], found["shares"][-1]
    return (
        f"Erasing the {_SPOKEN_SHARE:.0%} most attended tokens of a row lowers the predicted class's probability by "
        f"{most:.2f} on average, random {_SPOKEN_SHARE:.0%} by {random:.2f}, the {_SPOKEN_SHARE:.0%} least attended by "
        f"{least:.2f}. Over shares of {lowest:.0%} to {highest:.0%}, most attended against random tokens make a "
        f"difference of {gain['mean']:+.3f} (95% interval {gain['low']:+.3f} to {gain['high']:+.3f}, "
        f"{found['num_rows']:,} rows): {verdict}."
    )


class _Rows:
    """Ragged rows. row_of: the row of each token."""

    def __init__(self, values: Integers, lengths: Indices) -> None:
        self.values = values
        self.lengths = lengths
        self.offsets = np.concatenate(([0], np.cumsum(lengths)))
        self.row_of = np.repeat(np.arange(len(lengths)), lengths)

    @classmethod
    def of(cls, values: Integers, offsets: Indices, chosen: Indices) -> "_Rows":
        """Some rows of many, by their indices, ascending."""
        is_chosen = np.zeros(len(offsets) - 1, bool)
        is_chosen[chosen] = True
        lengths = np.diff(offsets)
        return cls(values[np.repeat(is_chosen, lengths)], lengths[chosen])

    def only(self, keep: npt.NDArray[np.bool_]) -> "_Rows":
        """The rows without the tokens that are not kept."""
        return _Rows(self.values[keep], np.bincount(self.row_of[keep], minlength=len(self.lengths)))

    def ranks(self, key: npt.NDArray[np.floating]) -> Indices:
        """The place of each token in its row, by key, ascending; equal keys in the order of their positions."""
        order = np.lexsort((key, self.row_of))
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order)) - self.offsets[self.row_of]
        return ranks

    def num_taken(self, share: float) -> Indices:
        """How many tokens of each row make up a share of at most a half: at least one and, of two tokens, not both."""
        taken: Indices = np.maximum(np.rint(self.lengths * share).astype(np.int64), 1)
        return taken


def _figures(falls: npt.NDArray[np.float64]) -> dict[str, Any]:
    """falls: float (shares, rows)."""
    of_row = falls.mean(axis=0)
    mean, deviation = float(of_row.mean()), float(of_row.std(ddof=1)) if len(of_row) > 1 else 0.0
    margin = _NORMAL_95 * deviation / len(of_row) ** 0.5
    return {
        "by_share": falls.mean(axis=1).tolist(),
        "mean": mean,
        "low": mean - margin,
        "high": mean + margin,
        "deviation": deviation,
    }
