"""Bad settings fail on construction, with the value in the message."""

import pytest

from attnlstm.training.settings import TrainingSettings


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
