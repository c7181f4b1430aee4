"""N-grams that a class attends to: what is counted is what each row says, in one pass of bounded memory."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage
from storage.analysis import attended
from storage.analysis.attended import attended_ngrams
from storage.errors import OutputError, SourceError
from storage.output.layout import Output

Made = Callable[..., Output]


def by_hand(output: str, rows: list[bytes], name: str, length: int) -> dict[tuple[int, ...], tuple[float, ...]]:
    """Of each n-gram the count, mean weight, and how many times the even share, one window after the other."""
    sums: dict[tuple[int, ...], np.ndarray] = defaultdict(lambda: np.zeros(3))
    found = storage.open_attention(output).collect()
    for content, row in zip(rows, found.iter_rows(named=True), strict=True):
        if row["prediction"] == name:
            weights = np.zeros(len(content))
            weights[row.get("positions", range(len(row["weights"])))] = row["weights"]
            for start in range(len(content) - length + 1):
                if weight := weights[start : start + length].sum():
                    sums[tuple(content[start : start + length])] += (1, weight, length / len(content))
    return {tokens: (count, weight / count, weight / even) for tokens, (count, weight, even) in sums.items()}


@pytest.fixture
def rows() -> list[bytes]:
    random = np.random.default_rng(7)
    return [bytes(random.integers(97, 100, length).astype(np.uint8)) for length in random.integers(1, 13, 60)]


@pytest.mark.parametrize("saving", ["full", "top:3"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.int16())], ids=["bytes", "ids"])
@pytest.mark.parametrize("length", [1, 3])
def test_counts_and_weights_are_those_of_all_rows_of_the_class(
    saving: str,
    kind: pa.DataType,
    length: int,
    rows: list[bytes],
    put: Callable[..., Path],
    made: Made,
) -> None:
    for name, part in (("a.parquet", rows[:31]), ("b.parquet", rows[31:])):
        put(name, pa.array([each if kind == pa.binary() else list(each) for each in part], kind), row_group_size=9)
    output = made(saving).root.path
    found = attended_ngrams(output, "odd", length=length, most=1000)
    expected = by_hand(output, rows, "odd", length)
    assert {each.tokens for each in found.ngrams} == expected.keys()
    for each in found.ngrams:
        assert (each.count, each.weight, each.times_even) == pytest.approx(expected[each.tokens], rel=1e-9)
    beyond = [each.count * each.weight * (1 - 1 / each.times_even) for each in found.ngrams]
    assert beyond == sorted(beyond, reverse=True)
    assert found.num_rows == sum(storage.open_predictions(output).collect()["prediction"] == "odd")
    assert (found.are_bytes, found.missing, found.let_go) == (kind == pa.binary(), {}, 0)
    assert attended_ngrams(output, "odd", length=length, most=2).ngrams == found.ngrams[:2]


def test_rows_that_were_cut_count_as_far_as_they_were_scored(put: Callable[..., Path], made: Made) -> None:
    put("a.parquet", [b"abcd", None, b"abzz"])
    output = made(max_tokens=2).root.path
    (name,) = set(storage.open_predictions(output).collect()["prediction"].drop_nulls())
    (found,) = attended_ngrams(output, name, length=2).ngrams
    assert (found.tokens, found.count, found.times_even) == (tuple(b"ab"), 2, pytest.approx(1))


def test_memory_is_bounded_and_what_was_let_go_is_said(
    rows: list[bytes], put: Callable[..., Path], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.parquet", rows)
    output = made(chunk_bytes=64).root.path
    every = attended_ngrams(output, "odd", most=1000)
    monkeypatch.setattr(attended, "_MOST_HELD", 5)
    found = attended_ngrams(output, "odd", most=1000)
    kept = sum(each.count * each.weight for each in found.ngrams)
    assert len(found.ngrams) == 5
    assert found.let_go == pytest.approx(1 - kept / sum(each.count * each.weight for each in every.ngrams))


def test_what_is_missing_is_said(data: Path, tmp_path: Path, put: Callable[..., Path], made: Made) -> None:
    for name in "abc":
        put(f"{name}.parquet", [b"abc", b"def"])
    output, bare = made().root.path, made("none", name="bare").root.path
    name = storage.open_predictions(output).collect()["prediction"][0]
    put("b.parquet", [b"abc"])
    (data / "c.parquet").unlink()
    found = attended_ngrams(output, name)
    assert found.missing == {"b.parquet": "it has changed since it was scored", "c.parquet": "it is not there"}
    assert found.num_rows >= 1
    data.rename(tmp_path / "moved")
    with pytest.raises(SourceError, match=r"^Nothing of the input below .*data can be read .* a\.parquet: it is not"):
        attended_ngrams(output, name)
    assert attended_ngrams(output, name, source=str(tmp_path / "moved")) == found
    with pytest.raises(
        OutputError, match=r"^The output has no class 'evn'; it has even, odd, third\. Did you mean 'even'\?$"
    ):
        attended_ngrams(output, "evn")
    with pytest.raises(OutputError, match=r"it was made with --save-attention none\.$"):
        attended_ngrams(bare, name)


def test_token_that_an_ngram_can_not_hold_is_named(put: Callable[..., Path], made: Made) -> None:
    put("a.parquet", pa.array([[1, 200, 3, 4, 5, 6, 7, 255]], pa.list_(pa.int32())))
    output = made().root.path
    name = storage.open_predictions(output).collect()["prediction"][0]
    assert attended_ngrams(output, name, length=8).ngrams[0].tokens == (1, 200, 3, 4, 5, 6, 7, 255)
    with pytest.raises(ValueError, match=r"^n-grams of 9 tokens hold no token 255; ask for shorter ones$"):
        attended_ngrams(output, name, length=9)
