"""Checkpoints from elsewhere: what is taken into the registry, under which classes, and what is refused unread. Those
for elsewhere: that they come back as they went."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from attnlstm.checkpoint import CheckpointError, to_files
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from flows.operations.exchange import adopt_checkpoint, export_checkpoint
from flows.operations.model import load
from flows.operations.promote import decide_promotion
from storage.errors import RegistryError, SourceError
from storage.labelled.source import LabelledSource
from storage.locations import Location
from storage.registry.cards import Card, card_to_json
from storage.registry.checkpoints import Registry, StoredCheckpoint, files_digest, read_checkpoint

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


def test_hub_folder_says_what_it_is_and_comes_back_with_the_same_digest_scores_and_card(
    trained: Any, registry: Registry, tmp_path: Path
) -> None:
    stored = Registry.open(str(trained.registry)).load(trained.version)
    folder = tmp_path / "hub"

    export_checkpoint(stored, "hub", str(folder))
    again = adopt_checkpoint(str(folder), registry)

    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "config.json").read_text())["id2label"]["0"] == stored_classes(stored)[0]
    _, header, page = (folder / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(header)
    assert (about["library_name"], about["model-index"][0]["name"]) == ("attnlstm", trained.version)
    assert about["model-index"][0]["results"][0]["metrics"][0]["value"] == round(stored.card.test.accuracy, 4)
    assert "# An attnlstm checkpoint" in page
    assert again.digest == stored.digest
    rows = [b"0123", b"abc", b"\xf0\xf1"]
    expected = load(str(trained.folder)).predict_proba(rows)
    for place in (folder, registry.folder(again.version)):
        np.testing.assert_array_equal(load(str(place)).predict_proba(rows), expected)
    assert (again.card.test, again.card.data, again.card.drift) == (
        stored.card.test,
        stored.card.data,
        stored.card.drift,
    )
    assert (again.card.added_from, again.card.judgement, again.card.version) == (str(folder), None, again.version)
    assert again.card.training.digest == ""


def stored_classes(stored: StoredCheckpoint) -> list[str]:
    return list(json.loads(stored.files["config.json"])["classes"])


@pytest.mark.parametrize(
    ("change", "classes"), [(b"{}", None), (None, ["b", "a"])], ids=["of other files", "of other classes"]
)
def test_card_that_speaks_of_something_else_is_left(
    change: bytes | None, classes: list[str] | None, put: Callable[..., Path], registry: Registry
) -> None:
    card = Card(digest=files_digest(FILES) if change is None else "another", faithfulness={"of": "something else"})
    place = put(FILES | {"card.json": card_to_json(card)})

    assert adopt_checkpoint(str(place), registry, classes=classes).card.faithfulness is None


def test_onnx_file_goes_where_it_is_told_and_names_its_checkpoint(put: Callable[..., Path], tmp_path: Path) -> None:
    stored = read_checkpoint(Location.parse(put(FILES)), "v1")

    said = export_checkpoint(stored, "onnx", str(tmp_path))

    assert said["onnx"] == str(tmp_path / "v1.onnx")
    about = onnxruntime.InferenceSession(tmp_path / "v1.onnx").get_modelmeta().custom_metadata_map
    assert (about["version"], about["digest"], about["classes"]) == ("v1", stored.digest, '["x", "y"]')
