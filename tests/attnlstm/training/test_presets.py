"""Presets give networks and settings that hold together."""

import subprocess
import sys
from dataclasses import replace

import pytest

from attnlstm.config import ModelConfig
from attnlstm.engines.fused_cpu import fits
from attnlstm.training.settings import DEFAULT, PRESETS, preset


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


def test_the_default_runs_on_the_fused_engine() -> None:
    assert fits(preset(DEFAULT).config(("a", "b"))) is None


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match="preset must be one of reference, small, base, not 'large'"):
        preset("large")


def test_presets_load_without_torch() -> None:
    """Flows build their forms from them, and a command line its help."""
    code = "import sys, attnlstm.training.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
