"""Data at rest: finding and reading input, planning shards, committing output, keeping checkpoints.

Knows pyarrow, polars and numpy. Knows nothing about networks (torch) or orchestration (prefect):
scores arrive as numpy arrays and checkpoints as bytes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.analysis.rows import open_rows
    from storage.output.frames import class_names, open_attention, open_predictions

__all__ = ["class_names", "open_attention", "open_predictions", "open_rows"]


def __getattr__(name: str) -> Any:
    # Late, so that Polars is imported only by those who read output back.
    if name in __all__:
        from storage.analysis import rows
        from storage.output import frames

        return getattr(rows if name == "open_rows" else frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
