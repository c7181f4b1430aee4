"""Bad settings fail on construction, and presets give networks and settings that hold together."""

from dataclasses import replace

import pytest

from attnlstm.config import ModelConfig
from attnlstm.engines.fused_cpu import fits
from attnlstm.network import AttentionLSTM
from attnlstm.training.fused import why_not_fused
from attnlstm.training.settings import PRESETS, TrainingSettings, preset


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, not 0"),
        ("batch_rows", 0, "batch_rows must be at least 1, not 0"),
        ("learning_rate", -1.0, "learning_rate must be above 0, not -1.0"),
        ("clip_norm", float("nan"), "clip_norm must be above 0, not nan"),
        ("weight_decay", -0.5, "weight_decay must be at least 0, not -0.5"),
        ("warmup_share", 1.0, "warmup_share must be at least 0 and below 1, not 1.0"),
        ("token_dropout", 1.0, "token_dropout must be at least 0 and below 1, not 1.0"),
        ("max_seconds", 0.0, "max_seconds must be above 0 or None, not 0.0"),
        ("threads", 0, "threads must be at least 1, not 0"),
        ("class_weights", "even", "class_weights must be one of none, balanced, not 'even'"),
        ("device", "tpu", "device must be one of auto, cpu, cuda, not 'tpu'"),
    ],
)
def test_bad_settings_fail_on_construction(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]


def test_the_reference_has_the_published_sizes() -> None:
    config = preset("reference").config(("a", "b"))
    assert replace(config, dropout=0.0) == ModelConfig(classes=("a", "b"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_a_network_and_settings_that_may_be_overridden(name: str) -> None:
    chosen = preset(name)
    assert chosen.name == name
    assert chosen.config(("a", "b"), attention="multihead").attention == "multihead"
    assert chosen.settings(seed=7, epochs=3) == replace(chosen.settings(), seed=7, epochs=3)
    with pytest.raises(TypeError, match="epoch"):
        chosen.settings(epoch=3)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_scores_and_trains_by_compiled_kernels(name: str) -> None:
    config = preset(name).config(("a", "b"))
    assert fits(config) is None
    assert why_not_fused(AttentionLSTM(config)) is None


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match="preset must be one of reference, fast, small, large, base, not 'huge'"):
        preset("huge")
