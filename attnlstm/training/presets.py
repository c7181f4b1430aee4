"""Named choices of a network's sizes together with the settings to train it with.

Owns the numbers. Knows nothing about data: a preset is for all.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from attnlstm.config import Attention, ModelConfig
from attnlstm.training.settings import TrainingSettings

PresetName = Literal["reference", "small", "base"]

DEFAULT: PresetName = "small"


@dataclass(frozen=True)
class Preset:
    """Sizes and training settings that go together. Fields as in `ModelConfig` and `TrainingSettings`."""

    name: PresetName
    embedding_dim: int
    hidden_size: int
    num_layers: int
    dropout: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)

    def config(self, classes: tuple[str, ...], attention: Attention = "additive") -> ModelConfig:
        """The network of this preset over these classes."""
        return ModelConfig(
            attention=attention,
            embedding_dim=self.embedding_dim,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout=self.dropout,
            classes=classes,
        )

    def settings(self, **overrides: Any) -> TrainingSettings:
        """How to train it; what is given goes before the preset's own. Raises TypeError on an unknown name."""
        return TrainingSettings(**{**self.training, **overrides})


_AGAINST_OVERFITTING: dict[str, Any] = {"batch_rows": 128, "token_dropout": 0.15}

PRESETS: dict[PresetName, Preset] = {
    preset.name: preset
    for preset in (
        # The published sizes.
        Preset("reference", embedding_dim=8, hidden_size=16, num_layers=2),
        # The most that the fused engine computes on a CPU. Dropout and hidden tokens let it train for as long as
        # harder data needs without learning few rows by heart.
        Preset("small", embedding_dim=16, hidden_size=32, num_layers=2, dropout=0.3, training=_AGAINST_OVERFITTING),
        # For a GPU, or for patience.
        Preset(
            "base",
            embedding_dim=32,
            hidden_size=128,
            num_layers=2,
            dropout=0.3,
            training={**_AGAINST_OVERFITTING, "learning_rate": 5e-3},
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of this name. Raises ValueError if there is none."""
    for known in PRESETS.values():
        if known.name == name:
            return known
    raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
