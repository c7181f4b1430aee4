"""One row looked at closely: what it is taken for, what is attended to, and what comes of erasing that.

Owns where a row of an output is found, and what is said of it. Knows nothing about how that is shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attnlstm.evaluation.faithfulness import measure
from storage.errors import SourceError, did_you_mean
from storage.input.shards import Shard
from storage.output.plan import OutputPlan

if TYPE_CHECKING:
    from attnlstm.engines import Engine

_MOST_NAMED = 5
_SPOKEN_SHARE = 0.1  # of a row's tokens, of which `sentence` speaks


@dataclass(frozen=True)
class Explanation:
    """What a checkpoint makes of one row.

    version: the checkpoint's. tokens: bytes, or ids. prediction: the name of the likeliest class. probabilities: of all
    classes, by name. weights: float32 (T,), of each token. shares: of the row's tokens that were erased. falls: how far
    the prediction's probability fell, for each share, by what was erased: the "most" attended tokens, "random" ones or
    the "least" attended. Both are empty for a row of one token, of which nothing would be left. withheld: the limit, as
    `abstain_below` has it, for which the output gives no prediction of the row; "" if it gives one.
    """

    version: str
    tokens: bytes | tuple[int, ...]
    prediction: str
    probabilities: dict[str, float]
    weights: npt.NDArray[np.float32]
    shares: tuple[float, ...]
    falls: dict[str, tuple[float, ...]]
    withheld: str = ""

    def said(self) -> str:
        """The prediction with its probability, and whether the output withholds it."""
        note = f"; the output withholds it, since it was to abstain below {self.withheld}" if self.withheld else ""
        return f"{self.prediction}, {self.probabilities[self.prediction]:.1%}{note}"

    def likeliest(self) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:_MOST_NAMED]

    def sentence(self) -> str:
        """What erasing the most attended tokens does, beside others, so that nobody takes shades for reasons."""
        if not self.falls:
            return "A row of one token has nothing left when it is erased."
        place = self.shares.index(_SPOKEN_SHARE)
        num_erased = max(1, round(len(self.weights) * _SPOKEN_SHARE))
        before = self.probabilities[self.prediction]
        after = {name: before - fall[place] for name, fall in self.falls.items()}
        erased = "token that is" if num_erased == 1 else f"{num_erased:,} tokens that are"
        return (
            f"Without the {erased} most attended, {self.prediction} has a probability of {after['most']:.3f} "
            f"instead of {before:.3f}; without as many random tokens {after['random']:.3f}, and without the least "
            f"attended {after['least']:.3f}."
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "checkpoint": self.version,
            "prediction": self.prediction,
            "withheld": self.withheld or None,
            "probabilities": self.probabilities,
            "num_tokens": len(self.weights),
            "weights": self.weights.tolist(),
            "erased": {"shares": self.shares, "falls": self.falls},
        }

    def _repr_html_(self) -> str:
        """For notebooks."""
        from flows.pages.page import explanation_html

        return explanation_html(self)


def explained(
    version: str,
    classes: tuple[str, ...],
    engine: "Engine",
    tokens: bytes | tuple[int, ...],
    values: npt.NDArray[np.integer],
) -> Explanation:
    """tokens: as they are shown. values: the same as an engine takes them, at least one."""
    offsets = np.array([0, len(values)])
    scores = engine.score(values, offsets)
    found = measure(engine.score, values, offsets, seed=0)
    falls = found["comprehensiveness"] if found else {}
    return Explanation(
        version=version,
        tokens=tokens,
        prediction=classes[int(scores.probabilities[0].argmax())],
        probabilities=dict(zip(classes, scores.probabilities[0].tolist(), strict=True)),
        weights=scores.attention_weights,
        shares=tuple(found["shares"]) if found else (),
        falls={name: tuple(falls[name]["by_share"]) for name in ("most", "random", "least") if falls},
    )


def find_row(plan: OutputPlan, file: str, row: int) -> tuple[Shard, int]:
    """The shard of a row, and the row in it. file: the input's name as an output has it. row: its position there.

    Raises SourceError if there is none.
    """
    shards = [shard for shard in plan.shards if shard.file == file]
    for shard in shards:
        if shard.first_row <= row < shard.first_row + shard.num_rows:
            return shard, row - shard.first_row
    if shards:
        num_rows = sum(shard.num_rows for shard in shards)
        raise SourceError(f"{file} has {num_rows:,} rows, counted from 0; row {row:,} is none of them.")
    names = sorted({shard.file for shard in plan.shards})
    known = f"it has {', '.join(names[:_MOST_NAMED])}{_more(names)}."
    raise SourceError(f"The source has no file {file}; {known}{did_you_mean(file, names)}")


def find_id(plan: OutputPlan, row_id: str) -> tuple[Shard, int]:
    """As `find_row`, by the id. Raises SourceError if no row of the output has it, or if several have."""
    found = [(shard, row) for shard in plan.shards for row in _rows_with(plan, shard, row_id)]
    if not found:
        raise SourceError(f"No row of the output has the id {row_id}.")
    if len(found) > 1:
        places = [f"{shard.file}:{shard.first_row + row}" for shard, row in found]
        more = f"{', '.join(places[:_MOST_NAMED])}{_more(places)}"
        raise SourceError(f"{len(found):,} rows have the id {row_id}: {more}. Name one of them with --row.")
    return found[0]


def _rows_with(plan: OutputPlan, shard: Shard, row_id: str) -> Iterator[int]:
    place = plan.output.predictions(shard.name)
    if not place.is_file():
        return
    ids = pq.read_table(place.path, filesystem=place.filesystem, columns=["id"], partitioning=None)["id"]
    texts = ids.cast(pa.large_string()) if not pa.types.is_binary(ids.type) else ids.cast(pa.binary())
    yield from pc.indices_nonzero(pc.equal(texts, pa.scalar(row_id, texts.type))).to_pylist()


def _more(names: list[str]) -> str:
    return f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
