"""The model: configuration, network, batching, inference engines, training, metrics, calibration.

Nothing is imported here, so that `import attnlstm.config` costs no torch. Knows nothing about Parquet or
Prefect: ragged data comes and goes as numpy `values` (all rows' tokens end to end) and `offsets` (int64,
rows + 1). The one thing here that is not of this package is `load`, the front door for use from Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.operations.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    # Late, for what needs this package alone. Where checkpoints lie is known above it.
    if name in __all__:
        from flows.operations import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
