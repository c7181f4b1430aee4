"""What errors say of a name that is not there."""

import pytest

from storage.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("tokns", "tokens"),
        ("Label", "label"),
        ("date=2026-11-1", "date=2026-11-01"),
        ("date=2026-11-02", None),  # a day that is not there yet is no slip of the pen
        ("dat=2026-11-01", "date=2026-11-01"),
        ("elsewhere", None),
    ],
)
def test_name_that_is_like_a_known_one_is_taken_for_it(name: str, guess: str | None) -> None:
    known = ("id", "tokens", "label", "date=2026-11-01")
    assert did_you_mean(name, known) == (f" Did you mean {guess!r}?" if guess else "")
