"""Checkpoints from elsewhere into the registry, and out of it for use elsewhere.

Owns which files may hold one and how they are read: as safetensors, never as a pickle, which can run any program; and
what a model hub has beside them. Knows nothing about Prefect, and nothing of what the checkpoint was trained on.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from flows.operations.measure import blank_card, make_readme, measure_network
from flows.operations.score import network_of
from storage.errors import RegistryError, SourceError
from storage.labelled.rows import LabelledRows
from storage.labelled.source import LabelledSource
from storage.locations import Location, without_credentials
from storage.registry.cards import Card, card_to_json
from storage.registry.checkpoints import (
    CARD,
    SCORING_FILES,
    Registry,
    StoredCheckpoint,
    files_digest,
    read_checkpoint,
)

if TYPE_CHECKING:
    from attnlstm.config import ModelConfig
    from attnlstm.network import AttentionLSTM

ExportFormat = Literal["onnx", "hub"]

_WEIGHTS = ".safetensors"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def adopt_checkpoint(
    place: str,
    registry: Registry,
    *,
    classes: Sequence[str] | None = None,
    num_heads: int = 1,
    labelled: LabelledSource | None = None,
) -> StoredCheckpoint:
    """Publish the checkpoint at a path or URI. If its files are in the registry already, it is that version.

    place: a safetensors file with weights under the published names, or a folder with such a file or with the two files
    of a checkpoint. classes: names in the order of the logits; None for those of `config.json` or else numbers.
    num_heads: of multihead attention, where there is no `config.json`. labelled: rows to measure it on; without any,
    what a card beside its files says of it is kept.
    Raises RegistryError if there is no such file, CheckpointError if it can't be used, and SourceError if the rows have
    none of the classes.
    """
    from attnlstm.checkpoint import to_files

    network = _read(Location.parse(place), classes, num_heads)
    rows = None
    if labelled is not None:
        rows = replace(labelled, num_tokens_known=network.config.padding_id).read()
        _name_as_labels(network, rows, labelled)
    card = measure_network(network, rows) if rows else _card(Location.parse(place), classes) or blank_card()
    card = replace(card, added_from=without_credentials(place))
    files = to_files(network)
    if there := _find(registry, files_digest(files)):
        if rows and there.card.added_from:
            measured = {name: getattr(card, name) for name in ("test", "sample", "drift", "faithfulness")}
            # What the figures were measured on before is no longer where they come from.
            return replace(there, card=registry.annotate(there.version, data=None, **measured))
        return there
    return registry.publish(files, card, make_readme(card, network.config, labelled.place if labelled else ""))


def export_checkpoint(stored: StoredCheckpoint, form: ExportFormat, out: str | None = None) -> dict[str, str]:
    """Write a checkpoint for use elsewhere; gives what was written, in words.

    form: "onnx" for a file (`attnlstm.onnx_graph.checked_onnx`), "hub" for a folder in the layout of the Hugging Face
    and Modelers hubs, which `adopt_checkpoint` takes. out: its path or URI; None for one in the working directory that
    is called after the version. In a folder that is there, other files stay.
    Raises CheckpointError if the checkpoint can't be used, OnnxError if there is no such graph.
    """
    from attnlstm.onnx_graph import TOLERANCE, checked_onnx

    network = network_of(stored)
    place = Location.parse(out or (f"{stored.version}.onnx" if form == "onnx" else stored.version))
    if form == "onnx":
        if place.is_folder():
            place /= f"{stored.version}.onnx"
        place.write_bytes(checked_onnx(network, {"version": stored.version, "digest": stored.digest}))
        return {"onnx": str(place), "checked": f"ONNX Runtime gives the engine's scores within {TOLERANCE:g}"}
    files = dict(stored.files) | {SCORING_FILES[0]: network.config.to_hub_json().encode()}
    # A judgement is about another checkpoint, which is not there.
    card = replace(stored.card, version=stored.version, digest=files_digest(files), judgement=None)
    files |= {"README.md": make_model_card(card, network.config).encode(), CARD: card_to_json(card)}
    for name, content in files.items():
        (place / name).write_bytes(content)
    return {"hub folder": str(place), "files": ", ".join(files)}


def make_model_card(card: Card, config: "ModelConfig") -> str:
    """The page about a checkpoint with the header that model hubs read. The license is for its owner to add."""
    import yaml

    header: dict[str, Any] = {
        "library_name": "attnlstm",
        "pipeline_tag": "text-classification",
        "tags": ["attnlstm", "lstm", "attention", "safetensors"],
        "frameworks": ["PyTorch"],
    }
    if test := card.test:
        measures = {"accuracy": test.accuracy, "f1": test.macro_f1, "log_loss": test.log_loss}
        source = card.data.source if card.data else "test rows"
        header["metrics"] = list(measures)
        result = {
            "task": {"type": "text-classification"},
            "dataset": {"type": "parquet", "name": source, "split": "test"},
            "metrics": [{"type": name, "value": round(value, 4)} for name, value in measures.items()],
        }
        header["model-index"] = [{"name": card.version, "results": [result]}]
    as_yaml = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{as_yaml}---\n\n{make_readme(card, config)}"


def _card(place: Location, classes: Sequence[str] | None) -> Card | None:
    """What a checkpoint's folder says of it; None if it says nothing, or speaks of other files or of other classes."""
    if classes is not None or not (place / CARD).is_file():
        return None
    with suppress(RegistryError):
        card = read_checkpoint(place, place.name).card
        training = replace(card.training, digest="") if card.training else None  # it is not a training of this registry
        return replace(card, training=training, judgement=None)
    return None


def _find(registry: Registry, digest: str) -> StoredCheckpoint | None:
    for version in registry.versions():
        with suppress(RegistryError):  # a damaged one is as good as not there
            if registry.card(version).digest == digest:
                return registry.load(version)
    return None


def _read(place: Location, classes: Sequence[str] | None, num_heads: int) -> "AttentionLSTM":
    from attnlstm.checkpoint import CheckpointError, from_files, from_weights

    if not place.is_folder():
        content = _weights(place)
        return from_weights(content, str(place), classes=classes, num_heads=num_heads)
    names = [name for info in place.walk() if "/" not in (name := place.relative(info.path))]
    if not set(SCORING_FILES) <= set(names):
        weights = [name for name in names if name.lower().endswith(_WEIGHTS)]
        found = weights or [name for name in names if name.lower().endswith(_PICKLES)]
        if len(found) != 1:
            what = f"several: {', '.join(found)}; name one of them" if found else "none"
            raise RegistryError(
                f"{place} is to have {' and '.join(SCORING_FILES)}, or one file with weights, and it has {what}."
            )
        return _read(place / found[0], classes, num_heads)
    network = from_files({name: (place / name).read_bytes() for name in SCORING_FILES}, where=str(place))
    if classes is not None:
        try:
            network.config = replace(network.config, classes=tuple(classes))
        except ValueError as error:
            raise CheckpointError(f"the classes that are given do not fit {place}: {error}") from None
    return network


def _weights(place: Location) -> bytes:
    """The bytes of a safetensors file. Raises RegistryError if there is none, or if it is a pickle."""
    if not place.is_file():
        raise RegistryError(f"There is no file or folder {place}. Check the path.")
    if place.name.lower().endswith(_PICKLES):
        stem = place.name.rpartition(".")[0]
        raise RegistryError(
            f"{place} is a pickle, which can run any program as it is opened, so it is not opened. If you trust "
            'it, add what this makes of it: python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{place.name}', weights_only=True), '{stem}{_WEIGHTS}')\""
        )
    return place.read_bytes()


def _name_as_labels(network: "AttentionLSTM", rows: LabelledRows, labelled: LabelledSource) -> None:
    """Give predictions the type of the labels, if all classes are of it."""
    config = network.config
    if not set(config.classes) & set(rows.classes):
        raise SourceError(
            f"None of the classes {', '.join(config.classes)} is a label in {labelled.place}, which has "
            f"{', '.join(rows.classes)}. Name the classes with --classes, in the order of the logits."
        )
    if config.label_type == "string":
        try:
            network.config = replace(config, label_type=rows.label_type)
        except ValueError:
            return  # some of its classes are none of these labels'
