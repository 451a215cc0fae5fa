"""The table of recipes against the paper, and what shortens a recipe."""

import dataclasses
import json
import math
import re

import pytest

import keras_resnet
from keras_resnet.axes import resolve
from keras_resnet.preprocessing import CIFAR10
from training.augment import chain
from training.optimizers import learning_rate_schedule, make_optimizer
from training.recipe import Recipe
from training.recipes import RECIPES, get_recipe, write_recipe

OF_THE_PAPER = [name for name in RECIPES if re.fullmatch(r"cifar10-(resnet|plainnet)\d+", name)]


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_cifar10_recipes_are_those_of_the_paper(name):
    """Section 4.2: batch 128, 0.1 divided at 32k and 48k of 64k, decay 1e-4, momentum 0.9."""
    recipe = get_recipe(name)
    assert (recipe.batch_size, recipe.steps) == (128, 64_000)
    assert (recipe.learning_rate, recipe.decay_factor) == (0.1, 0.1)
    assert recipe.milestones == (32_000, 48_000)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, False, 1e-4)
    assert recipe.augmentation == {"pad_crop_flip": {}}
    assert (recipe.warmup_steps, recipe.warmup_learning_rate) == (
        400 if name in ("cifar10-resnet110", "cifar10-resnet1202") else 0,
        0.01,
    )


def test_the_table_has_the_networks_of_the_paper():
    depths = {name.removeprefix("cifar10-") for name in OF_THE_PAPER}
    assert depths == {f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)} | {
        f"plainnet{depth}" for depth in (20, 32, 44, 56)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_followed(name):
    recipe = RECIPES[name]
    assert recipe.variant in keras_resnet.list_variants()
    resolve(recipe.variant, recipe.options)
    chain(recipe.augmentation, CIFAR10)
    make_optimizer(recipe)
    assert recipe.reference
    assert RECIPES[recipe.name] is recipe


# name -> epochs, batch, rate at the start, after half and before the end: from the papers' texts.
PUBLISHED = {
    "cifar10-resnet110-stochastic-depth": (500, 128, 0.1, 0.01, 0.001),
    "cifar10-wideresnet28-10": (200, 128, 0.1, 0.02, 0.0008),
    "cifar10-densenetbc100-12": (300, 64, 0.1, 0.01, 0.001),
    "imagenet-resnet50-torchvision-v1": (90, 256, 0.1, 0.01, 0.001),
    "imagenet-resnet50-torchvision-v2": (600, 1024, 0.005, 0.25, 0.0),
    "imagenet-resnet50-a1": (600, 2048, 1e-4, 0.0025, 0.0),
    "imagenet-resnet50-a2": (300, 2048, 1e-4, 0.0025, 0.0),
    "imagenet-resnet50-a3": (100, 2048, 1e-4, 0.00433, 0.0),
}


@pytest.mark.parametrize("plan", ["a1", "a2", "a3"])
def test_all_mixed_classes_are_there_in_resnet_strikes_back(plan):
    """Section 3.1: a target of 1 for each, rather than shares that sum to 1."""
    recipe = RECIPES[f"imagenet-resnet50-{plan}"]
    assert (recipe.loss, recipe.target_threshold) == ("binary_crossentropy", 0.2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_epochs_and_rates_are_the_published_ones(name):
    recipe = RECIPES[name]
    images = {"cifar10": 45_000, "imagenet2012": 1_271_167}[recipe.dataset]
    epochs, batch_size, first, middle, last = PUBLISHED[name]
    assert recipe.batch_size == batch_size
    assert recipe.steps * batch_size / images == pytest.approx(epochs, rel=1e-4)
    rate = learning_rate_schedule(recipe)
    rates = [float(rate(step)) for step in (0, recipe.steps // 2 + 1, recipe.steps - 1)]
    assert rates == pytest.approx([first, middle, last], rel=0.03, abs=1e-8)


def test_scaling_moves_milestones_and_warm_up():
    recipe = get_recipe("cifar10-resnet110").scaled(steps=640)
    assert (recipe.steps, recipe.milestones, recipe.warmup_steps) == (640, (320, 480), 4)
    assert recipe.learning_rate == 0.1


def test_another_batch_size_sees_as_many_images():
    recipe = get_recipe("cifar10-resnet20").with_batch_size(64)
    assert (recipe.steps, recipe.milestones) == (128_000, (64_000, 96_000))
    assert (recipe.learning_rate, recipe.batch_size) == (0.1, 64)


def test_one_step_is_a_run():
    assert get_recipe("cifar10-resnet110").scaled(steps=1).steps == 1


def test_a_recipe_survives_json():
    recipe = get_recipe("cifar10-resnet110")
    assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="Unknown recipe") as error:
        get_recipe("cifar10_resnet20")
    assert str(error.value) == (
        f"Unknown recipe. Expected one of {', '.join(RECIPES)}. Received: 'cifar10_resnet20'. "
        "Did you mean 'cifar10-resnet20'?"
    )


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="one step") as error:
        get_recipe("cifar10-resnet20").scaled(steps=0)
    assert str(error.value) == (
        "A run needs at least one step of at least one image. Expected `steps` >= 1. "
        "Received: steps=0."
    )


def test_a_schedule_out_of_order_is_refused():
    with pytest.raises(ValueError, match="out of order") as error:
        dataclasses.replace(get_recipe("cifar10-resnet20"), milestones=(48_000, 32_000))
    assert str(error.value) == (
        "The learning-rate schedule is out of order. Expected 0 <= warmup_steps <= milestones <= "
        "steps. Received: warmup_steps=0, milestones=(48000, 32000), steps=64000."
    )


def test_another_batch_size_may_scale_the_rate():
    recipe = get_recipe("cifar10-resnet20").with_batch_size(512, scale_learning_rate=True)
    assert (recipe.batch_size, recipe.steps, recipe.learning_rate) == (512, 16_000, 0.4)


@pytest.mark.parametrize("batch_size", [8, 1024])
def test_a_scaled_rate_still_rises_in_the_warm_up(batch_size):
    recipe = get_recipe("cifar10-resnet20-fast")
    scaled = recipe.with_batch_size(batch_size, scale_learning_rate=True)
    rates = learning_rate_schedule(recipe), learning_rate_schedule(scaled)
    for share in (0.0, 0.1, 0.2, 0.6):
        before, after = (float(r(share * n.steps)) for r, n in zip(rates, (recipe, scaled)))
        assert after / before == pytest.approx(batch_size / 128, rel=1e-5)


def test_changes_reach_into_mappings():
    recipe = get_recipe("cifar10-resnet20").changed(
        {"learning_rate": 0.3, "options.shortcut": "projection", "augmentation.shift.padding": 2}
    )
    assert recipe.learning_rate == 0.3
    assert recipe.options == {"shortcut": "projection"}
    assert recipe.augmentation == {"pad_crop_flip": {}, "shift": {"padding": 2}}


@pytest.mark.parametrize("names", [("steps", "milestones"), ("milestones", "steps")])
def test_changes_that_fit_together_come_in_any_order(names):
    changes = {"steps": 300, "milestones": [100, 200]}
    recipe = get_recipe("cifar10-resnet20").changed({name: changes[name] for name in names})
    assert (recipe.steps, recipe.milestones) == (300, (100, 200))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1}, "Did you mean 'learning_rate'"),
        ({"momentum.beta": 1}, "after `options`"),
        ({"schedule": "steps"}, "Did you mean 'step'"),
        ({"momentum": 1.5}, "0 <= `momentum` < 1"),
        ({"clip_norm": 0}, "`clip_norm` > 0"),
        ({"decay_factor": 10}, "0 < `decay_factor` < 1"),
        ({"options.shortcutt": "none"}, "Did you mean 'shortcut'"),
        ({"preprocessing.resise_size": 40}, "Did you mean 'resize_size'"),
        ({"image_sizes": [(0, 128), (0, 160)]}, "out of order"),
        ({"image_sizes": [(0, 128), (math.nan, 160)]}, "out of order"),
        ({"image_sizes": [(0, 0)]}, "a side of 1 or more"),
        ({"learning_rate": math.inf}, "`learning_rate` > 0"),
        ({"warmup_learning_rate": math.nan}, "`warmup_learning_rate` >= 0"),
        ({"warmup_learning_rate": -0.1}, "`warmup_learning_rate` >= 0"),
        ({"target_threshold": 0.2}, "target_threshold=None"),
        ({"loss": "binary_crossentropy", "target_threshold": 1.0}, "0 <= `target_threshold` < 1"),
    ],
)
def test_changes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        get_recipe("cifar10-resnet20").changed(changes)


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("nesterov", "False", "bool"),
        ("learning_rate", "abc", "float"),
        ("momentum", True, "float"),
        ("steps", 100.0, "int"),
        ("clip_norm", "None", "float | None"),
        ("milestones", 5, "tuple[int, ...]"),
        ("decay_exclude", "bias", "tuple[str, ...]"),
        ("image_sizes", [[0, 24, 3]], "tuple[tuple[float, int], ...]"),
        ("options", None, "Mapping[str, Any]"),
        ("options.survival_probability", "high", "float"),
        ("preprocessing.size", 32, "tuple[int, int]"),
        ("augmentation", {"shift": 2}, "Mapping[str, Mapping[str, Any]]"),
    ],
)
def test_values_of_another_kind_are_refused(field, value, kind):
    with pytest.raises(ValueError, match="another kind") as error:
        get_recipe("cifar10-resnet20").changed({field: value})
    assert str(error.value) == (
        f"A value is of another kind than its field. Expected `{field}` as {kind}. "
        f"Received: {value!r}."
    )


def test_a_recipe_in_a_file(tmp_path):
    recipe = get_recipe("cifar10-resnet20-fast").changed({"image_sizes": [(0, 24), (0.5, 32)]})
    write_recipe(recipe, tmp_path / "mine.json")
    assert get_recipe(str(tmp_path / "mine.json")) == recipe
    for content in (b"{}", b"\xff"):
        (tmp_path / "mine.json").write_bytes(content)
        with pytest.raises(ValueError, match="holds no recipe"):
            get_recipe(str(tmp_path / "mine.json"))
    fields = dataclasses.asdict(recipe) | {"synchronized_batch_norm": "False"}
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="Expected `synchronized_batch_norm` as bool"):
        get_recipe(str(tmp_path / "mine.json"))
