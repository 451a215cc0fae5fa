"""What `--field` means, and what it is not."""

import keras_tuner
import numpy as np
import pytest

from training.recipes import get_recipe
from training.space import check_fields, default_fields, parse_field


@pytest.mark.parametrize(
    ("text", "extremes", "whole"),
    [
        ("learning_rate=0.01:0.5:log", (0.01, 0.5), False),
        ("weight_decay=1e-5:1e-3:log", (1e-5, 1e-3), False),
        ("augmentation.pad_crop_flip.padding=2:6", (2, 6), True),
        ("batch_size=32:128:32", (32, 128), True),
        ("options.survival_probability=0.5:1:0.1", (0.5, 1), False),
        ("options.shortcut=zero_padding,projection", ("zero_padding", "projection"), None),
        ("options.attention=none,se", ("none", "se"), None),
        ("nesterov=true,false", (True, False), None),
        ("nesterov=True,False", (True, False), None),
        ("clip_norm=None,1.0,5", (None, 1.0, 5), None),
        ("clip_norm=null,.5", (None, 0.5), None),
    ],
)
def test_ranges_and_choices_are_read(text, extremes, whole):
    field = parse_field(text)
    assert field.extremes == extremes
    assert [type(value) for value in field.extremes] == [type(value) for value in extremes]
    assert parse_field(str(field)) == field
    if whole is not None:
        proposed = np.float64(extremes[0])
        assert type(field.value(proposed)) is (int if whole else float)
        assert field.value(proposed) == extremes[0]


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate",
        "learning_rate=",
        "=0.1:1",
        "learning_rate=0.1:",
        "learning_rate=:1",
        "learning_rate=0.1:log",
        "learning_rate=low:high",
        "learning_rate=0.1:1:fast",
        "learning_rate=0.1:inf",
        "learning_rate=1:2:3:4",
        "variant=resnet18,,resnet34",
    ],
)
def test_what_is_no_field_is_refused(text):
    with pytest.raises(ValueError, match="cannot be read") as error:
        parse_field(text)
    assert str(error.value) == (
        "A field of the search cannot be read. Expected FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, "
        f"FIELD=LOW:HIGH:STEP or FIELD=A,B,C. Received: {text!r}."
    )


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("label_smoothing=0:0.3:0.1", [0.0, 0.1, 0.2, 0.3]),
        ("label_smoothing=0.1:0.3:0.2", [0.1, 0.3]),
        ("options.survival_probability=0.5:1.0:0.1", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("weight_decay=1e-5:3e-5:1e-5", [1e-5, 2e-5, 3e-5]),
        ("batch_size=32:128:32", [32, 64, 96, 128]),
        ("batch_size=1:10:4", [1, 5, 9]),
    ],
)
def test_steps_are_those_that_are_written_up_to_the_end(text, values):
    field, hyperparameters = parse_field(text), keras_tuner.HyperParameters()
    field.declare(hyperparameters)
    found = [field.value(proposed) for proposed in hyperparameters.space[0].values]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=0.5:0.01", "LOW < HIGH"),
        ("learning_rate=0.5:0.5", "LOW < HIGH"),
        ("learning_rate=0:1:log", "LOW > 0 in a logarithmic range"),
        ("batch_size=32:64:48", "0 < STEP <= 32"),
        ("learning_rate=0.1", "two different values, or a range LOW:HIGH"),
        ("variant=resnet18,resnet18", "two different values, or a range LOW:HIGH"),
    ],
)
def test_an_empty_range_is_refused(text, expected):
    name, _, values = text.partition("=")
    with pytest.raises(ValueError, match="nothing to choose") as error:
        parse_field(text)
    assert str(error.value) == (
        f"The search has nothing to choose from for {name!r}. Expected {expected}. "
        f"Received: {values}."
    )


def test_the_default_space_surrounds_the_recipe():
    recipe = get_recipe("cifar10-resnet20")
    assert [str(field) for field in default_fields(recipe)] == [
        "learning_rate=0.01:1.0:log",
        "weight_decay=1e-05:0.001:log",
    ]
    decaying = default_fields(recipe.changed({"weight_decay": 0.2}))
    assert str(decaying[1]) == "weight_decay=0.02:0.99:log"
    check_fields(decaying, recipe)
