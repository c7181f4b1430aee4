"""config.json and the checks on sizes."""

import json
from dataclasses import replace

import pytest

from attnlstm.config import REQUIRED_KEYS, ModelConfig

CONFIG = ModelConfig(classes=("ham", "späm"))


def test_defaults_are_the_reference_network() -> None:
    assert json.loads(CONFIG.to_json()) == {
        "attention": "additive",
        "num_embeddings": 257,
        "embedding_dim": 8,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 1,
        "attention_size": None,
        "dropout": 0.0,
        "classes": ["ham", "späm"],
        "num_classes": 2,
        "temperature": 1.0,
    }
    assert CONFIG.padding_id == 256


def test_json_round_trip() -> None:
    config = replace(CONFIG, attention="multihead", num_heads=4, dropout=0.25, temperature=1.5)
    assert ModelConfig.from_json(config.to_json(), "config.json") == config


@pytest.mark.parametrize(
    ("label_type", "classes"), [("int64", ("-9223372036854775808", "7")), ("bool", ("false", "true"))]
)
def test_type_of_labels_is_recorded_unless_they_are_strings(label_type: str, classes: tuple[str, ...]) -> None:
    config = replace(CONFIG, classes=classes, label_type=label_type)  # type: ignore[arg-type]
    assert json.loads(config.to_json())["label_type"] == label_type
    assert ModelConfig.from_json(config.to_json(), "config.json") == config


def test_form_for_hubs_has_names_of_classes_both_ways_and_is_read_back() -> None:
    text = CONFIG.to_hub_json()
    record = json.loads(text)
    assert record["id2label"] == {str(number): name for number, name in enumerate(CONFIG.classes)}
    assert record["label2id"] == {name: number for number, name in enumerate(CONFIG.classes)}
    assert ModelConfig.from_json(text, "config.json") == CONFIG
    for key in ("id2label", "label2id"):
        with pytest.raises(ValueError, match=f"^here: {key} and classes name other classes; make them agree$"):
            ModelConfig.from_json(json.dumps(record | {key: {}}), "here")


@pytest.mark.parametrize(
    ("label_type", "name"), [("int64", "9223372036854775808"), ("int64", "07"), ("int64", "x"), ("bool", "True")]
)
def test_class_that_is_not_of_the_type_of_labels_is_refused(label_type: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^label_type is {label_type}, and the class '{name}' is none$"):
        replace(CONFIG, classes=(name, "1" if label_type == "int64" else "true"), label_type=label_type)  # type: ignore[arg-type]


def test_keys_beyond_the_required_ones_have_defaults() -> None:
    required = {key: value for key, value in json.loads(CONFIG.to_json()).items() if key in REQUIRED_KEYS}
    assert ModelConfig.from_json(json.dumps(required), "config.json") == CONFIG


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "here is not JSON: "),
        ("{", "here is not JSON: "),
        ("[]", "here must hold a JSON object, not list"),
        ('{"attention": "additive", "classes": []}', "here lacks num_embeddings, embedding_dim, "),
        (
            CONFIG.to_json().replace("dropout", "drop_out"),
            "here has unknown keys: drop_out; known are attention, num_embeddings, ",
        ),
        (CONFIG.to_json().replace("257", '"257"'), "here: num_embeddings must be an integer of at least 2, not '257'"),
        (CONFIG.to_json().replace("257", "true"), "here: num_embeddings must be an integer of at least 2, not True"),
        (CONFIG.to_json().replace("1.0", "NaN"), "here: temperature must be above 0 and finite, not nan"),
        (
            CONFIG.to_json().replace('"num_classes": 2', '"num_classes": 3'),
            "here: num_classes is 3, but 2 classes are named",
        ),
    ],
)
def test_bad_json_says_what_is_wrong_and_where(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        ModelConfig.from_json(text, "here")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "dot"}, "attention must be 'additive' or 'multihead', not 'dot'"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1, not 0"),
        ({"hidden_size": True}, "hidden_size must be an integer of at least 1, not True"),
        ({"num_layers": 1.0}, "num_layers must be an integer of at least 1, not 1.0"),
        ({"num_heads": 2}, "num_heads is for multihead attention; additive has one head, not 2"),
        ({"attention": "multihead", "num_heads": 5}, "num_heads must divide 2 * hidden_size = 32, not 5"),
        (
            {"attention": "multihead", "attention_size": 8},
            "attention_size is for additive attention; got 8",
        ),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dropout": 0.1, "num_layers": 1}, "dropout acts between layers, and there is one; got 0.1"),
        ({"longest_ngram": 0}, "longest_ngram must be an integer of at least 1, not 0"),
        ({"longest_ngram": 3}, "ngram_buckets must be an integer of at least 1, not 0"),
        ({"longest_ngram": 3, "ngram_buckets": 1000}, "ngram_buckets must be a power of two, not 1000"),
        ({"ngram_buckets": 64}, "ngram_buckets and ngram_dropout are for networks whose longest_ngram is above 1"),
        (
            {"longest_ngram": 3, "ngram_buckets": 64, "ngram_dropout": 1.0},
            "ngram_dropout must be at least 0 and below 1, not 1.0",
        ),
        ({"ngram_hash": "md5"}, "ngram_hash must be polynomial-31, not 'md5'"),
        ({"temperature": 0.0}, "temperature must be above 0 and finite, not 0.0"),
        ({"classes": "ab"}, "classes must be a list of names, not 'ab'"),
        ({"classes": (1, 2)}, "classes must be names; got 1"),
        ({"classes": ("a",), "num_classes": 0}, "at least two classes are needed; got ['a']"),
        ({"classes": ("a", "b", "a")}, "classes must differ; 'a' is there more than once"),
    ],
)
def test_bad_values_fail_on_construction(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        replace(CONFIG, **changes)
    assert str(error.value) == message
