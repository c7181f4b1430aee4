"""What a classify run leaves: files that analysts read, the manifest, and what Prefect's page shows.

All of it is read from one run, with other readers and other arithmetic than those that wrote it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import storage
from flows.classify import classify
from flows.retrain import retrain

NUM_CHECKED = 300
Row = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def _names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _read(root: Path, name: str) -> pa.Table:
    return pq.read_table(root / name, partitioning=None)


def _joined(dataset: Path, output: Path) -> list[dict[str, Any]]:
    """Tokens, prediction and attention of every row, put side by side by file and position."""
    rows = []
    for name in _names(dataset):
        tables = (_read(root, name) for root in (dataset, output / "predictions", output / "attention"))
        rows += [a | b | c for a, b, c in zip(*(table.to_pylist() for table in tables), strict=True)]
    return rows


def test_output_has_a_file_of_each_kind_for_every_input_and_nothing_unfinished(scored: Any, dataset: Path) -> None:
    names = _names(dataset)
    run_id = scored.manifest.run_id

    visible = [name for name in _names(scored.output) if not name.startswith(".lock")]
    assert visible == sorted(
        ["README.md", "_dataset.json", f"runs/{run_id}.html", f"runs/{run_id}.json"]
        + [f"{kind}/{name}" for kind in ("predictions", "attention") for name in names]
    )


def test_every_row_comes_out_once_in_order_with_its_kept_columns(scored: Any, dataset: Path) -> None:
    for name in _names(dataset):
        given, predictions = _read(dataset, name), _read(scored.output / "predictions", name)

        assert predictions.column_names == [
            *("row", "id", "origin", "number", "label"),
            *("prediction", "score", "probabilities", "num_tokens", "truncated", "error", "checkpoint"),
        ]
        for column in ("id", "origin", "number", "label"):
            assert predictions[column].equals(given[column])
        assert _read(scored.output / "attention", name)["id"].equals(given["id"])


@pytest.fixture(scope="module")
def scored_by_multihead(
    prefect_server: str, untrained: dict[str, Path], dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The dataset, scored by a checkpoint that lies in a folder of its own, outside of any registry."""
    output = tmp_path_factory.mktemp("multihead") / "output"
    state = classify(str(dataset), str(output), checkpoint=str(untrained["multihead"]), workers=2, return_state=True)
    assert state.is_completed(), state.message
    return output


def _plain_scorer(checkpoint: Path) -> Callable[[bytes], Row]:
    """Probabilities and attention weights of a row, from a checkpoint's files and torch's own modules alone."""
    config = json.loads((checkpoint / "config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    state_size = 2 * config["hidden_size"]

    def loaded(module: nn.Module, prefix: str) -> nn.Module:
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        module.load_state_dict(own)
        return module.eval()

    embedding = loaded(nn.Embedding(config["num_embeddings"], config["embedding_dim"]), "embedding.")
    lstm = nn.LSTM(
        config["embedding_dim"],
        config["hidden_size"],
        num_layers=config["num_layers"],
        bidirectional=True,
        batch_first=True,
    )
    sequence = loaded(lstm, "sequence.")
    mlp = nn.Sequential(
        nn.Linear(state_size, config["hidden_size"]), nn.ReLU(), nn.Linear(config["hidden_size"], config["num_classes"])
    )
    classify_context = loaded(mlp, "mlp.")
    if config["attention"] == "additive":
        scores = loaded(nn.Linear(state_size, state_size), "attention.qk_weights.")
        dot_product = loaded(nn.Linear(state_size, 1, bias=False), "attention.dot_product.")
    else:
        q, k, v = (loaded(nn.Linear(state_size, state_size, bias=False), f"{name}.") for name in "qkv")
        attention = loaded(nn.MultiheadAttention(state_size, config["num_heads"], batch_first=True), "attention.")

    @torch.no_grad()
    def score(tokens: bytes) -> Row:
        states, _ = sequence(embedding(torch.tensor([list(tokens)])))
        if config["attention"] == "additive":
            received = dot_product(scores(states)).softmax(dim=1)[0, :, 0]
            context = (received[:, None] * states[0]).sum(dim=0)
        else:
            outputs, matrix = attention(q(states), k(states), v(states), need_weights=True)
            received, context = matrix[0].mean(dim=0), outputs[0].sum(dim=0)
        logits = classify_context(context) / config["temperature"]
        return logits.softmax(dim=-1).numpy(), received.numpy()

    return score


@pytest.mark.parametrize("attention", ["additive", "multihead"])
def test_output_agrees_with_a_plain_loop_of_one_row_at_a_time(
    attention: str, scored: Any, trained: Any, dataset: Path, request: pytest.FixtureRequest, untrained: dict[str, Path]
) -> None:
    if attention == "additive":
        checkpoint, output = trained.folder, scored.output
    else:
        checkpoint, output = untrained["multihead"], request.getfixturevalue("scored_by_multihead")
    score = _plain_scorer(checkpoint)
    rows = [row for row in _joined(dataset, output) if row["error"] is None]
    drawn = np.random.default_rng(31).choice(len(rows), NUM_CHECKED, replace=False)

    for row in (rows[place] for place in drawn):
        probabilities, weights = score(row["tokens"])
        np.testing.assert_allclose(row["probabilities"], probabilities, atol=1e-4, rtol=0)
        np.testing.assert_allclose(row["weights"], weights, atol=1e-4, rtol=0)


def test_predictions_of_a_checkpoint_outside_of_a_registry_carry_the_name_of_its_folder(
    scored_by_multihead: Path, dataset: Path
) -> None:
    table = _read(scored_by_multihead / "predictions", _names(dataset)[0])

    assert set(table["checkpoint"].to_pylist()) == {"multihead"}
    assert table.column_names[:3] == ["row", "id", "prediction"]


def test_manifest_counts_what_is_in_the_files(scored: Any, trained: Any, dataset: Path) -> None:
    rows = _joined(dataset, scored.output)
    usable = [row for row in rows if row["error"] is None]
    manifest = scored.manifest

    assert manifest.state == "completed"
    assert manifest.checkpoint == trained.version
    assert [shard.name for shard in manifest.shards] == _names(dataset)
    assert {shard.reason for shard in manifest.shards} == {"missing"}
    assert manifest.totals["rows"] == len(rows)
    assert manifest.totals["errors"] == {"no tokens": 4, "tokens are null": 4}
    assert manifest.totals["tokens"] == sum(len(row["tokens"]) for row in usable)
    assert manifest.totals["predictions"] == {
        name: sum(row["prediction"] == name for row in usable) for name in manifest.totals["predictions"]
    }


def test_evaluation_compares_predictions_with_the_label_column(scored: Any, dataset: Path) -> None:
    usable = [row for row in _joined(dataset, scored.output) if row["error"] is None]
    pairs = [(row["label"], row["prediction"]) for row in usable]
    f1 = []
    for name in ("digits", "high", "letters"):
        both = sum(pair == (name, name) for pair in pairs)
        f1.append(2 * both / sum((label == name) + (prediction == name) for label, prediction in pairs))

    evaluation = scored.manifest.evaluation
    assert evaluation["accuracy"] == pytest.approx(np.mean([label == prediction for label, prediction in pairs]))
    assert evaluation["macro_f1"] == pytest.approx(np.mean(f1))
    assert evaluation["accuracy"] > 0.9


def test_predictions_of_integer_labels_can_be_compared_with_the_labels(prefect_server: str, tmp_path: Path) -> None:
    """From labels by way of a training to Polars: null, missing and partition labels among them."""
    for name, labels in (("a", [1, 0] * 60), ("b", pa.nulls(2)), ("label=1/c", None)):
        path = tmp_path / f"data/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {} if labels is None else {"label": labels}
        num_rows = 1 if labels is None else len(labels)
        pq.write_table(pa.table({"tokens": [[row % 2, row] for row in range(num_rows)], **columns}), path)
    places = {"registry": str(tmp_path / "registry")}
    options = {"preset": "reference", "epochs": 1}
    retrained: Any = retrain(str(tmp_path / "data"), **places, **options, return_state=True)
    version = retrained.result()["version"]
    output = str(tmp_path / "output")
    classified: Any = classify(
        str(tmp_path / "data"), output, **places, checkpoint=version, label_column="label", return_state=True
    )
    assert classified.is_completed(), classified.message
    frame = storage.open_predictions(output).collect()
    assert (frame.height, frame.schema["prediction"]) == (123, pl.Int64)
    (manifest,) = (json.loads(path.read_text()) for path in Path(output, "runs").glob("*.json"))
    equal = frame.select((pl.col("label").cast(pl.Int64) == pl.col("prediction")).mean()).item()
    assert manifest["evaluation"]["accuracy"] == pytest.approx(equal)


def test_run_is_named_by_its_source_and_says_what_it_did(scored: Any, dataset: Path) -> None:
    assert scored.manifest.run_name.startswith(f"classify {dataset} ")
    assert scored.state.message == "420 rows in 4 shards scored, 8 with errors; 0 shards were up to date."


def test_prefect_shows_report_shards_output_and_progress_of_a_run(
    scored: Any, dataset: Path, artifacts_of: Callable[..., dict[str, Any]]
) -> None:
    by_key = artifacts_of(scored.state)

    parts = ("drift", "output", "page", "progress", "report", "shards")
    assert sorted(by_key) == [f"classify-{part}" for part in parts]
    assert str(scored.output) in str(by_key["classify-output"].data)
    assert f"{scored.output}/{scored.manifest.report}" in str(by_key["classify-page"].data)
    assert by_key["classify-progress"].data == 100
    assert [row["shard"] for row in json.loads(str(by_key["classify-shards"].data))] == _names(dataset)
    assert by_key["classify-progress"].description == f"Rows scored into {scored.output}: 420 of 420"
    assert str(by_key["classify-report"].data).startswith("## 420 rows scored, 8 with errors\n")


def test_prefect_shows_as_many_of_the_least_sure_rows_as_are_asked_for(
    rescore: Callable[..., Any], tmp_path: Path, artifacts_of: Callable[..., dict[str, Any]]
) -> None:
    run = rescore(tmp_path / "output", page_rows=3)

    page = re.sub(r"\\(.)", r"\1", str(artifacts_of(run.state)["classify-page-rows"].data))
    rows = storage.open_predictions(run.output).drop_nulls("score").sort("score").head(3).collect()
    assert page.strip().split("\n\n")[::2] == [
        f"**date={row['date']}/part-0.parquet, row {row['row']}**: "
        f"{row['prediction']}, {row['score']:.1%}, labelled {row['label']}"
        for row in rows.iter_rows(named=True)
    ]
    assert re.search("<mark>[^<>]+</mark>", page)
