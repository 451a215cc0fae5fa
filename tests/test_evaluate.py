"""Crops, scales and ensembles against NumPy; the confusion matrix and the worst mistakes."""

import csv
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image
from trained import look_trained, network

import keras_resnet
from keras_resnet.preprocessing import IMAGENET, Preprocessing
from training import crops, datasets, evaluate, mistakes, plots, publish, records, splits
from training.compilation import compiled_model
from training.crops import Crops
from training.recipes import get_recipe
from training.strategy import make_strategy

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
PLAIN = Preprocessing(size=(8, 8), resize_size=None, scale=1.0, mean=(0.0,), std=(1.0,))
WITH_ROOM = dataclasses.replace(PLAIN, resize_size=12)


def coordinates(height, width):
    """An image whose pixels say where they are."""
    return np.arange(height * width, dtype="float32").reshape(height, width, 1)


def random_images(count, height=8, width=8, channels=1):
    size = (count, height, width, channels)
    return np.random.default_rng(0).integers(256, size=size, dtype="uint8")


def small_network(seed=0, side=8):
    """A trained-looking network for 8x8 images in grey; without a side for those of any size."""
    keras.utils.set_random_seed(seed)
    model = keras_resnet.build("cifar_resnet8", input_shape=(side, side, 1))
    model.preprocessing = datasets.DIGITS
    return look_trained(model, seed)


def predict(model, split, preprocessing, batch_size=4, **choices):
    return crops.predict(
        model,
        split,
        batch_size=batch_size,
        preprocessing=preprocessing,
        crops=Crops(**choices),
    )


def mean_over(model, views):
    """The mean of what a model answers to batches of the same images in the same order."""
    return np.mean([np.asarray(model(np.asarray(view, "float32"))) for view in views], axis=0)


def mirrored(views):
    """Views, and each of them mirrored: `(..., height, width, channels)`."""
    return [*views, *(np.asarray(view)[..., ::-1, :] for view in views)]


@pytest.mark.parametrize(("height", "width"), [(12, 17), (20, 12), (12, 12)])
def test_ten_crops_are_the_corners_and_the_centre_of_the_whole_image(height, width):
    image = coordinates(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = [
        image[:8, :8],
        image[:8, -8:],
        image[-8:, :8],
        image[-8:, -8:],
        image[top : top + 8, left : left + 8],
    ]
    image = np.minimum(image, 255)  # as every image
    expected = np.minimum(mirrored(expected), 255)
    np.testing.assert_allclose(crops.ten_crop(image, preprocessing=WITH_ROOM), expected, atol=1e-4)
    five = crops.ten_crop(image, preprocessing=WITH_ROOM, mirror=False)
    np.testing.assert_allclose(five, expected[:5], atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (16, 36)])
def test_the_centre_of_ten_crops_is_the_single_crop(size):
    image = random_images(1, 30, 45, 3)[0]
    preprocessing = dataclasses.replace(IMAGENET, size=size, resize_size=20)
    views = crops.ten_crop(image, preprocessing=preprocessing)
    np.testing.assert_allclose(views[4], preprocessing(image), atol=1e-4)


def test_small_images_get_a_border_in_the_mean_colour():
    image = random_images(1, 32, 32, 3)[0]
    preprocessing = keras_resnet.VARIANTS["cifar_resnet20"].preprocessing
    colour = np.multiply(preprocessing.mean, 255)
    padded = np.broadcast_to(colour, (40, 40, 3)).copy()
    padded[4:36, 4:36] = image
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    expected = [padded[top : top + 32, left : left + 32] for top, left in corners]
    expected = (np.array(mirrored(expected)) / 255 - preprocessing.mean) / preprocessing.std
    views = crops.ten_crop(image, preprocessing=preprocessing)
    np.testing.assert_allclose(views, expected, atol=1e-5)


def test_a_scale_keeps_the_proportions_of_the_image():
    preprocessing = dataclasses.replace(WITH_ROOM, antialias=False)
    image = random_images(1, 16, 24)[0].astype("float32")
    views = crops.at_scale(image, scale=8, preprocessing=preprocessing)
    halved = image.reshape(8, 2, 12, 2, 1).mean(axis=(1, 3))
    np.testing.assert_allclose(views, mirrored([halved]), atol=1e-4)


def test_a_scale_of_images_that_are_never_cropped_has_the_proportions_of_the_input():
    wide = dataclasses.replace(PLAIN, size=(8, 12))
    assert crops.at_scale(np.zeros((20, 20, 1)), scale=12, preprocessing=wide).shape[1:3] == (
        12,
        18,
    )


def test_default_scales_follow_the_size_of_the_input():
    assert crops.default_scales(IMAGENET) == (224, 256, 384, 480, 640)
    half = dataclasses.replace(IMAGENET, size=(112, 112), resize_size=128)
    assert crops.default_scales(half) == (112, 128, 192, 240, 320)
    assert crops.default_scales(PLAIN) == (7, 8, 9, 10)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_ten_crops_are_averaged_over_each_image_once(replicas):
    """Seven images in batches of four views: no batch holds whole images only."""
    images, labels = random_images(7), np.arange(7)
    with make_strategy(replicas).scope():
        model = small_network()
    padded = np.pad(images.astype("float32"), [(0, 0), (1, 1), (1, 1), (0, 0)])
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    views = mirrored([padded[:, top : top + 8, left : left + 8] for top, left in corners])
    split = splits.held_in_memory(images, labels)
    answers = predict(model, split, PLAIN, mode="ten")
    np.testing.assert_allclose(answers, mean_over(model, views), atol=1e-5)
    np.testing.assert_array_equal(evaluate.read_labels(split), labels)


def test_ten_crops_of_one_colour_score_as_one():
    images = np.broadcast_to(np.arange(0, 200, 40, "uint8")[:, None, None, None], (5, 12, 12, 1))
    model, split = small_network(), splits.held_in_memory(images, np.arange(5))
    single, ten = (predict(model, split, WITH_ROOM, mode=mode) for mode in ("single", "ten"))
    np.testing.assert_allclose(ten, single, atol=1e-5)
    assert np.ptp(single, axis=0).max() > 1e-3


def test_single_is_what_the_model_answers():
    images, model = random_images(7), small_network()
    split = splits.held_in_memory(images, np.arange(7))
    expected = model(datasets.DIGITS(images))
    np.testing.assert_allclose(predict(model, split, datasets.DIGITS), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["cifar_resnet20", "cifar_resnet110v2", "densenet40_12", "resnext50_32x4d"]
)
def test_the_models_own_scale_is_a_single_crop(name):
    """Of every kind of network: the copy for any size has the same weights."""
    stem = {"stem": "cifar"} if name == "resnext50_32x4d" else {}
    model = network(name, blocks=(1, 1), **stem)
    preprocessing = dataclasses.replace(PLAIN, size=(12, 12), mean=(99,) * 3, std=(50,) * 3)
    split = splits.held_in_memory(random_images(5, 12, 12, 3), np.arange(5))
    single = predict(model, split, preprocessing)
    same = predict(model, split, preprocessing, mode="multi_scale", scales=(12,), mirror=False)
    np.testing.assert_allclose(same, single, atol=1e-5)
    other = predict(model, split, preprocessing, mode="multi_scale", scales=(16,), mirror=False)
    assert np.abs(other - single).max() > 1e-3


@pytest.mark.parametrize("side", [8, None])
def test_scales_and_mirrored_images_are_averaged(side):
    images, model = random_images(5), small_network(side=side)
    at_half = keras_resnet.build("cifar_resnet8", input_shape=(4, 4, 1))
    at_half.set_weights(model.get_weights())
    halved = images.reshape(5, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    expected = (mean_over(model, mirrored([images])) + mean_over(at_half, mirrored([halved]))) / 2
    answers = predict(
        model,
        splits.held_in_memory(images, np.arange(5)),
        dataclasses.replace(PLAIN, antialias=False),
        mode="multi_scale",
        scales=("8", " 4"),  # as of the command line's `8, 4`
    )
    np.testing.assert_allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 4])
def test_images_of_varied_sizes_are_scored_at_their_own_proportions(replicas, tmp_path):
    """The shorter side has the scale already, so that the reference needs no resize."""
    sizes = [(12, 15), (20, 12), (12, 12)]
    images = [random_images(1, *size, 3)[0] for size in sizes]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    split = splits.read_from_files(tmp_path, [f"{n}.png" for n in range(3)], np.arange(3))
    with make_strategy(replicas).scope():
        model = keras_resnet.build("cifar_resnet8", input_shape=(8, 8, 3))
        any_size = keras_resnet.build("cifar_resnet8", input_shape=(None, None, 3))
    look_trained(model)
    any_size.set_weights(model.get_weights())
    preprocessing = dataclasses.replace(PLAIN, resize_size=10, mean=(99,) * 3, std=(50,) * 3)
    expected = np.concatenate(
        [mean_over(any_size, mirrored([preprocessing.normalize(image[None])])) for image in images]
    )
    answers = predict(model, split, preprocessing, mode="multi_scale", scales=(12,))
    np.testing.assert_allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"mode": "multiscale"},
            "Unknown crops. Expected one of single, ten, multi_scale. Received: 'multiscale'. Did "
            "you mean 'multi_scale'?",
        ),
        (
            {"mode": "ten", "scales": (224, 256)},
            "Only multi_scale crops have scales. Expected no scales. Received: 224, 256 with "
            "'ten'. Did you mean 'multi_scale'?",
        ),
        (
            {"mode": "multi_scale", "scales": ("224", "1.5")},
            "A scale is the length of the image's shorter side. Expected positive whole numbers of "
            "pixels. Received: 224, 1.5",
        ),
    ],
    ids=["mode", "scales_of_ten", "scale"],
)
def test_crops_that_do_not_exist(choices, message):
    with pytest.raises(ValueError) as error:
        Crops(**choices)
    assert str(error.value) == message


@pytest.mark.parametrize("side", [8, None])
def test_scales_at_which_nothing_is_left_to_pool(side):
    split = splits.held_in_memory(random_images(1), [0])
    with pytest.raises(ValueError) as error:
        predict(small_network(side=side), split, PLAIN, mode="multi_scale", scales=(8, 3))
    assert str(error.value) == (
        "The images are too small for 'cifar_resnet8'. Expected scales of at least 4 pixels. "
        "Received: 8, 3"
    )


@pytest.mark.parametrize("side", [6, None])
def test_the_models_own_scale_is_never_too_small(side):
    """Images of 6 pixels become 0.75 pixels, rounded up."""
    model = crops.with_size(network("resnet18", input_shape=(side, side, 3)), (None, None))
    own = dataclasses.replace(PLAIN, size=(6, 6))
    crops.check_scales(model, (6,), own)
    with pytest.raises(ValueError, match="scales of at least 6 pixels"):
        crops.check_scales(model, (6, 5), own)
    with pytest.raises(ValueError, match="scales of at least 8 pixels"):
        crops.check_scales(model, (7,), dataclasses.replace(own, size=(9, 9)))


@pytest.mark.parametrize("mode", crops.MODES)
def test_a_split_without_images_is_refused(mode):
    split = splits.held_in_memory(np.zeros((0, 8, 8, 1), "uint8"), [])
    with pytest.raises(ValueError, match="The split to be evaluated is empty"):
        predict(small_network(), split, PLAIN, mode=mode)


def make_run(run_dir, model, **changes):
    """A finished run that ended with this model."""
    run_dir.mkdir(parents=True)
    recipe = dataclasses.replace(get_recipe("digits-resnet20"), **changes)
    names = [str(digit) for digit in range(10)]
    data = {"class_names": names, "skip_corrupt": False, "skipped": []}
    record = records.new_record(recipe, seed=0, replicas=1, data=data)
    records.write(run_dir, record.finished(1.0, {"test": {}}))
    model.save(run_dir / records.BEST)
    return run_dir


@pytest.fixture(scope="module")
def models():
    return [small_network(seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"seed{n}", model) for n, model in enumerate(models, start=1)]


def test_an_ensemble_answers_the_mean_of_its_members(models, runs):
    answers = evaluate.answer([*runs, runs[1]], batch_size=100)
    joined = keras_resnet.ensemble([*models, models[1]])
    images, labels = zip(*datasets.load("digits").splits["test"].examples().as_numpy_iterator())
    expected = joined.predict(datasets.DIGITS(np.stack(images)), verbose=0)
    np.testing.assert_allclose(answers.probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(answers.labels, labels)
    assert answers.evaluation.top1 == sklearn.metrics.accuracy_score(labels, expected.argmax(1))
    for model, scores in zip([*models, models[1]], answers.evaluations):
        alone = model.predict(datasets.DIGITS(np.stack(images)), verbose=0).argmax(1)
        assert scores.top1 == sklearn.metrics.accuracy_score(labels, alone)


def test_an_ensemble_of_a_run_with_itself_is_the_run(runs):
    twice = evaluate.answer([runs[0], runs[0]], split="validation")
    once, _ = evaluate.evaluate_run(runs[0], split="validation")
    assert twice.evaluation.cross_entropy == pytest.approx(once.cross_entropy, abs=1e-6)
    assert twice.evaluation.top1 == once.top1 == twice.evaluations[1].top1


def test_runs_of_different_images_need_a_dataset(runs, models, tmp_path):
    other = make_run(tmp_path / "other", models[0], dataset="folder:digits")
    with pytest.raises(ValueError) as error:
        evaluate.answer([runs[0], other])
    assert str(error.value) == (
        "The runs learnt from different images. Expected runs of one dataset. Received: 'digits', "
        "'folder:digits'. Choose the images with --dataset."
    )
    assert evaluate.answer([runs[0], other], dataset="digits").evaluation.count == 360


def test_runs_that_held_out_different_images_share_the_test_split_only(runs, models, tmp_path):
    other = make_run(tmp_path / "other", models[0], validation_examples=40)
    for named in (None, "digits"):
        assert evaluate.answer([other], split="validation", dataset=named).evaluation.count == 40
    assert evaluate.answer([runs[0], other]).evaluation.count == 360
    with pytest.raises(ValueError) as error:
        evaluate.answer([runs[0], other], split="validation")
    assert str(error.value) == (
        "The runs held out different images for validation, so that one has learnt what is new to "
        "another. Expected runs with the same validation_examples. Received: None, 40. Score them "
        "on the test split."
    )


def test_the_cross_entropy_of_classes_on_their_own_is_that_of_the_training():
    shares, labels = np.random.default_rng(0).uniform(size=(20, 7)), np.arange(20) % 7
    metric = keras.metrics.SparseCategoricalCrossentropy()
    metric.update_state(labels, shares.astype("float32"))
    expected = float(metric.result())
    assert evaluate.score(shares, labels).cross_entropy == pytest.approx(expected, rel=1e-5)


def answers_of(probabilities, labels):
    """Answers to images whose pixels all have the value of their position."""
    count = len(labels)
    images = np.broadcast_to(np.arange(count, dtype="uint8")[:, None, None, None], (count, 4, 4, 3))
    dataset = types.SimpleNamespace(
        class_names=("cat", "dog, small", "$owl_{$"),
        splits={"test": splits.held_in_memory(images, labels)},
    )
    return evaluate.Answers(dataset, "test", np.asarray(labels), (np.asarray(probabilities),))


def test_the_confusion_matrix_is_written_as_scikit_learn_counts_it(tmp_path):
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(3), size=50), random.integers(3, size=50)
    files = mistakes.write(answers_of(probabilities, labels), tmp_path / "new", title="$pets^$")
    assert [file.name for file in files] == ["confusion.csv", "confusion.png", "mistakes.png"]
    with open(files[0], newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", "cat", "dog, small", "$owl_{$"]
    assert [row[0] for row in rows] == header[1:]
    np.testing.assert_array_equal(
        np.array([row[1:] for row in rows], int),
        sklearn.metrics.confusion_matrix(labels, probabilities.argmax(axis=1)),
    )
    assert all(Image.open(file).width > 300 for file in files[1:])


def test_the_surest_mistakes_come_first_with_their_images(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "prediction_grid", lambda *args, **kwargs: drawn.extend(args))
    probabilities = [[0.6, 0.3, 0.1], [0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]]
    mistakes.write(answers_of(probabilities, [1, 0, 0, 2]), tmp_path, title="pets")
    images, labels, shown = drawn[:3]
    assert [image.max() for image in images] == [2, 3, 0]
    assert list(labels) == [0, 2, 1]
    np.testing.assert_allclose(shown.max(axis=1), [0.8, 0.7, 0.6])


def test_without_mistakes_there_is_no_picture_of_them(tmp_path):
    (tmp_path / "mistakes.png").write_text("of an earlier evaluation")
    mistakes.write(answers_of(np.eye(3), [0, 1, 2]), tmp_path, title="pets")
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.csv", "confusion.png"}


@pytest.mark.parametrize("classes", [3, 50], ids=["few", "many"])
def test_the_confusion_matrix_is_dark_where_the_answers_are(classes, tmp_path):
    def dark_pixels(confusion):
        names = [f"class {n}" for n in range(classes)]
        plots.confusion_matrix(confusion, names, tmp_path / "confusion.png", title="pets")
        pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB")).astype(int)
        return ((pixels[..., 2] > 90) & (pixels[..., 0] < 40)).sum()

    nothing = np.zeros((classes, classes), int)
    right = dark_pixels(7 * np.eye(classes, dtype=int)) - dark_pixels(nothing)
    one_answer = nothing.copy()
    one_answer[:, 0] = 7
    assert right > 500
    assert right == pytest.approx(dark_pixels(one_answer) - dark_pixels(nothing), rel=0.1)


@pytest.mark.slow
def test_the_command_line_compares_runs_and_writes_the_mistakes(runs, tmp_path):
    choices = "--split validation --crops multi_scale --scales 8,10 --no-mirror --replicas 2"
    answer = subprocess.run(
        [sys.executable, "-m", "training", "evaluate", *runs, *choices.split(), "--output", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    chosen = Crops("multi_scale", (8, 10), mirror=False)
    expected = evaluate.answer(runs, split="validation", crops=chosen)
    for scores in (*expected.evaluations, expected.evaluation):
        assert f"{scores.top1:.2%}" in answer.stdout
        assert f"{scores.cross_entropy:.4f}" in answer.stdout
    assert "Members on digits, validation, several scales, not mirrored" in answer.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"confusion.csv", "confusion.png", "mistakes.png"}


def test_a_run_is_published_whatever_it_was_computed_with(tmp_path):
    changes = {
        "variant": "cifar_resnet8",
        "precision": "mixed_bfloat16",
        "synchronized_batch_norm": True,
    }
    recipe = dataclasses.replace(get_recipe("digits-resnet20"), **changes)
    model = compiled_model(recipe, datasets.load("digits"))
    run_dir = make_run(tmp_path / "run", model, **changes)
    path = tmp_path / "new folder" / "weights.safetensors"
    sha256 = publish.publish(run_dir, path, images=20)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    again = keras_resnet.build("cifar_resnet8", weights=path)
    for weight, expected in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_what_does_not_give_the_model_back_is_not_published(tmp_path):
    run_dir = make_run(
        tmp_path / "run", small_network(), variant="cifar_resnet8", precision="mixed_bfloat16"
    )
    path = tmp_path / "published" / "weights.safetensors"
    with pytest.raises(ValueError, match="does not give the model back"):
        publish.publish(run_dir, path, images=20)
    assert not list(path.parent.iterdir())
