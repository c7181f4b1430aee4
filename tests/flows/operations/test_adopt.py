"""Checkpoints from elsewhere: what is taken into the registry, under which classes, and what is refused unread."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from attnlstm.checkpoint import CheckpointError, to_files
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from flows.operations.adopt import adopt_checkpoint
from flows.operations.promote import decide_promotion
from storage.errors import RegistryError, SourceError
from storage.labelled.source import LabelledSource
from storage.registry.checkpoints import Registry

NETWORK = AttentionLSTM(ModelConfig(num_embeddings=400, classes=("x", "y"), temperature=1.5))
FILES = to_files(NETWORK)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """put(name=content, ...): a folder with these files."""

    def put(files: dict[str, bytes]) -> Path:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    return put


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledSource:
    """Integer labels that are easy to tell, and token ids beyond bytes."""
    rows = [[300 + row % 2, row] for row in range(200)]
    pq.write_table(pa.table({"tokens": rows, "label": [row % 2 for row in range(200)]}), tmp_path / "labelled.parquet")
    return LabelledSource(str(tmp_path / "labelled.parquet"))


def config(registry: Registry, version: str) -> dict[str, Any]:
    return dict(json.loads((registry.folder(version) / "config.json").read_text()))


@pytest.mark.parametrize(
    ("files", "name", "classes", "expected"),
    [
        (FILES, "", None, ["x", "y"]),
        (FILES, "", ["b", "a"], ["b", "a"]),
        (FILES, "model.safetensors", None, ["0", "1"]),
        ({"Weights.SafeTensors": FILES["model.safetensors"], "readme.md": b""}, "", ["a", "b"], ["a", "b"]),
    ],
)
def test_checkpoint_is_taken_with_its_classes_or_those_that_are_given(
    files: dict[str, bytes],
    name: str,
    classes: list[str] | None,
    expected: list[str],
    put: Callable[..., Path],
    registry: Registry,
) -> None:
    place = put(files) / name

    stored = adopt_checkpoint(str(place), registry, classes=classes)

    assert registry.load(stored.version).files["model.safetensors"] == FILES["model.safetensors"]
    assert config(registry, stored.version)["classes"] == expected
    assert config(registry, stored.version)["num_embeddings"] == 400
    assert stored.card.added_from == str(place)
    assert (stored.card.test, stored.card.data, registry.alias()) == (None, None, None)
    assert adopt_checkpoint(str(place), registry, classes=classes).version == stored.version


def test_checkpoint_is_measured_named_as_the_labels_are_and_judged(
    put: Callable[..., Path], registry: Registry, labelled: LabelledSource, tmp_path: Path
) -> None:
    place = put({"w.safetensors": FILES["model.safetensors"]})
    adopt_checkpoint(str(place), registry)  # before there were labels: as strings

    stored = adopt_checkpoint(str(place), registry, labelled=labelled)
    promotion = decide_promotion(labelled, registry, stored.version)

    assert config(registry, stored.version)["label_type"] == "int64"
    assert stored.card.test is not None
    assert promotion.judgement is not None
    assert stored.card.test.num_rows == promotion.judgement.num_rows > 10
    assert stored.card.test.accuracy == promotion.judgement.challenger.accuracy
    assert "classify gives" not in promotion.why
    readme = (registry.folder(stored.version) / "README.md").read_text()
    assert f"Added from `{place}`; what it was trained on is not known here." in readme
    assert f"Measured on {stored.card.test.num_rows} test rows of `{labelled.source}`" in readme
    assert "token ids from 0 to 398" in readme
    # Added again with other rows, it is the same version, measured on those.
    others = pa.table({"tokens": [[310, row] for row in range(200)], "label": [1, 0] * 100})
    pq.write_table(others, tmp_path / "others.parquet")
    other = LabelledSource(str(tmp_path / "others.parquet"))
    again = adopt_checkpoint(str(place), registry, labelled=other)
    assert again.version == stored.version
    assert again.card.sample != stored.card.sample
    assert "whose scores its card keeps" not in decide_promotion(other, registry, again.version).why


@pytest.mark.parametrize("name", ["w.pt", "W.PTH", "pytorch_model.bin", "last.ckpt"])
def test_pickle_is_refused_unread_with_what_to_do(name: str, put: Callable[..., Path], registry: Registry) -> None:
    place = put({})
    torch.save(NETWORK.state_dict(), place / name)
    refusal = r"is a pickle, .* it is not opened\. .* python -c .*weights_only=True"
    for each in (place, place / name):
        with pytest.raises(RegistryError, match=refusal) as refused:
            adopt_checkpoint(str(each), registry)
    assert f"torch.load('{name}'" in str(refused.value)
    assert registry.versions() == []


@pytest.mark.parametrize(
    ("files", "name", "classes", "message"),
    [
        ({}, "", None, "is to have config.json and model.safetensors, or one file with weights, and it has none"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "", None, "several: a.safetensors, b.safetensors; name one"),
        ({}, "none.safetensors", None, "There is no file or folder .*none.safetensors"),
        ({"w.safetensors": b"PK"}, "w.safetensors", None, r"w.safetensors \(2 bytes\) is not safetensors"),
        (FILES, "model.safetensors", ["a"], "model.safetensors cannot be used: at least two classes are needed"),
        (FILES, "", ["a", "b", "c"], "the classes that are given do not fit .*: num_classes is 2, but 3 classes"),
        (FILES | {"config.json": b"{}"}, "", None, "config.json lacks attention"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    files: dict[str, bytes],
    name: str,
    classes: list[str] | None,
    message: str,
    put: Callable[..., Path],
    registry: Registry,
) -> None:
    with pytest.raises((RegistryError, CheckpointError), match=message):
        adopt_checkpoint(str(put(files) / name), registry, classes=classes)
    assert registry.versions() == []


def test_classes_of_which_no_row_has_a_label_are_refused(
    put: Callable[..., Path], registry: Registry, labelled: LabelledSource
) -> None:
    with pytest.raises(
        SourceError, match=r"^None of the classes x, y is a label in .*, which has 0, 1\. Name the classes"
    ):
        adopt_checkpoint(str(put(FILES)), registry, labelled=labelled)
