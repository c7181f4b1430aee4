"""Who takes part, by name, and how each is opened.

A contender is opened (its model is loaded), and then goes from Parquet to Parquet. Modules are imported when they are
opened, so that a process holds no more than its contender needs.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import is_avx512_hidden
from script import Score, Task, score_dataset

Run = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Contender:
    """module, opener: what opens it. candidates: the name of the settings to choose from, in its module.

    options: what the opener is given in any case. needs: a package that may be missing.
    whole: it opens to what goes from Parquet to Parquet; otherwise, to what scores arrays.
    takes_signals: it handles the signal by which AVX-512 is hidden, and would end where it is.
    """

    module: str
    opener: str = "open_peer"
    candidates: str | None = "CANDIDATES"
    options: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    whole: bool = False
    takes_signals: bool = False

    @property
    def reason_to_skip(self) -> str | None:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed; the extra `bench` has it"
        if self.takes_signals and is_avx512_hidden():
            return "it does not run where AVX-512 is hidden"
        return None

    def settings(self) -> list[dict[str, Any]]:
        """The settings worth trying; a single empty one if there is nothing to choose."""
        return getattr(importlib.import_module(self.module), self.candidates) if self.candidates else [{}]

    def open(self, task: Task, settings: dict[str, Any]) -> Run:
        """What goes from a dataset's folder to a new folder with the output."""
        opened = self._opened(task, settings)
        return opened if self.whole else lambda source, output: score_dataset(opened, source, output, task.attention)

    def open_score(self, task: Task, settings: dict[str, Any]) -> Score:
        """What scores arrays, of a contender that is not whole."""
        assert not self.whole, self.module
        return self._opened(task, settings)

    def _opened(self, task: Task, settings: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(self.module), self.opener)(task, **self.options, **settings)


def _ours(opener: str, engine: str) -> Contender:
    return Contender("ours", opener, None, {"engine": engine}, whole=True)


PEERS = {
    "naive script": Contender("peers.packed_torch", "open_naive", "NAIVE"),
    "PackedSequence, sorted": Contender("peers.packed_torch"),
    "torch, sorted": Contender("peers.sorted_torch"),
    "ONNX Runtime, sorted": Contender("peers.onnx_runtime", needs="onnxruntime"),
    "Ray Data": Contender("peers.ray_data", needs="ray", whole=True, takes_signals=True),
}
FLOW, BUNDLES, TORCH_ENGINE = "attnlstm classify", "attnlstm without Prefect", "attnlstm, torch engine"
OURS = {
    FLOW: _ours("open_flow", "auto"),
    BUNDLES: _ours("open_bundles", "auto"),
    TORCH_ENGINE: _ours("open_bundles", "torch"),
}
CONTENDERS = PEERS | OURS
