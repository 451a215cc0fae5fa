"""Training, scoring and drawing: what a user finds in a run's directory, and whether it is true."""

import csv
import dataclasses
import types

import keras
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

import keras_resnet
from training import checkpoints, datasets, evaluate, exports, loop, pipeline, plots, records
from training.callbacks import NonFiniteLoss
from training.compilation import compiled_model
from training.crops import Crops
from training.interruption import Interrupted
from training.recipes import get_recipe
from training.strategy import make_strategy

TINY = dataclasses.replace(
    get_recipe("digits-resnet20"), variant="cifar_resnet8", batch_size=64, weight_decay=1e-4
)


@pytest.fixture(scope="module", params=[1, 2], ids=["one_replica", "two_replicas"])
def run(request, tmp_path_factory):
    """A run of a few steps that ends in the middle of its second epoch."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    record = loop.train(TINY, run_dir=run_dir, steps=30, replicas=request.param, verbose=0)
    return run_dir, record, request.param


def test_a_run_leaves_weights_curves_and_a_record(run):
    run_dir, record, replicas = run
    assert {path.name for path in run_dir.iterdir()} == {
        "best.keras",
        "curves.png",
        "last.keras",
        "lock",
        "metrics.csv",
        "record.json",
        "tensorboard",
    }
    assert records.read(run_dir) == record
    assert record.replicas == replicas
    assert (record.recipe.steps, record.recipe.milestones) == (30, (15, 22))
    assert sum(record.data["images"].values()) == 1797
    assert record.seconds > 0
    assert list(run_dir.glob("tensorboard/*/events*"))


def test_a_run_ends_after_its_last_step(run):
    run_dir, record, _ = run
    last = keras.saving.load_model(run_dir / records.LAST)
    assert int(last.optimizer.iterations.numpy()) == 30
    assert record.results["epochs"] == 2


def test_the_metrics_are_one_row_per_epoch(run):
    run_dir, record, _ = run
    with open(run_dir / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert max(accuracies) == pytest.approx(record.results["validation_accuracy"])
    assert record.results["best_epoch"] == 2 - int(np.argmax(accuracies[::-1]))
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.01, 0.001])


def test_the_kept_weights_score_what_the_record_says(run):
    """Four replicas do not share batches of 70 evenly: evaluation takes the next larger ones."""
    run_dir, record, _ = run
    for split, expected in (
        ("test", record.results["test"]["top1"]),
        ("validation", record.results["validation_accuracy"]),
    ):
        scores, _ = evaluate.evaluate_run(run_dir, split=split, replicas=4, batch_size=70)
        assert scores.top1 == pytest.approx(expected, abs=1e-6)


def test_validation_during_training_counts_every_image_once(run):
    """Batches of 64 do not divide the split: the images that fill up the last weigh nothing."""
    run_dir, record, _ = run
    assert record.data["images"]["validation"] % 64
    with open(run_dir / "metrics.csv") as file:
        row = list(csv.DictReader(file))[record.results["best_epoch"] - 1]
    scores, _ = evaluate.evaluate_run(run_dir, split="validation", batch_size=60)
    assert float(row["val_accuracy"]) == pytest.approx(scores.top1, abs=1e-6)
    for name in ("val_cross_entropy", "val_loss"):
        assert float(row[name]) == pytest.approx(scores.cross_entropy, rel=1e-4)


def test_the_saved_model_knows_its_images(run):
    model = keras.saving.load_model(run[0] / records.BEST)
    assert model.preprocessing == datasets.load("digits").preprocessing


def test_epochs_are_passes_over_the_training_split():
    digits = datasets.load("digits")
    assert loop.steps_per_epoch(TINY, digits) == 20
    assert digits.splits["train"].num_examples == pytest.approx(20 * 64, abs=32)
    assert loop.fit_to_data(TINY, digits, epochs=3).steps == 60
    assert loop.fit_to_data(TINY, digits, epochs=2, batch_size=128).steps == 20
    assert loop.fit_to_data(TINY, digits, batch_size=128).steps == TINY.steps // 2


def test_the_same_seed_gives_the_same_weights(tmp_path):
    def weights(name, seed):
        run_dir = tmp_path / name
        loop.train(TINY, run_dir=run_dir, steps=2, seed=seed, verbose=0)
        return keras.saving.load_model(run_dir / records.LAST).get_weights()

    first, again, other = weights("first", 1), weights("again", 1), weights("other", 2)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.abs(first[0] - other[0]).max() > 1e-3


def test_a_run_on_growing_images_learns_what_keras_learns_size_by_size(tmp_path):
    recipe = TINY.changed({"image_sizes": ((0, 6), (0.5, 12))})
    record = loop.train(recipe, run_dir=tmp_path, steps=4, verbose=0)
    digits = datasets.load("digits")
    keras.utils.set_random_seed(0)
    model = compiled_model(record.recipe, digits)
    for side, start in ((6, 0), (12, 2)):
        batches = pipeline.training_batches(
            digits,
            batch_size=recipe.batch_size,
            augmentation=recipe.augmentation,
            preprocessing=dataclasses.replace(digits.preprocessing, size=(side, side)),
            seed=0,
            start_step=start,
        )
        for images, labels in batches.take(2):
            model.train_on_batch(images, labels)
    last = keras.saving.load_model(tmp_path / records.LAST)
    for found, expected in zip(last.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    images, labels = zip(*digits.splits["test"].examples().as_numpy_iterator())
    probabilities = model.predict(digits.preprocessing(np.stack(images)), verbose=0)
    scores, _ = evaluate.evaluate_run(tmp_path, crops=Crops("multi_scale", (8,), mirror=False))
    (report,) = exports.export_run(tmp_path, tmp_path / "exports", formats=["tflite"])
    for top1 in (record.results["test"]["top1"], scores.top1, report.accuracy):
        assert top1 == sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1))


def test_exports_are_calibrated_on_training_images_and_compared_on_test_images(run, monkeypatch):
    asked = {}
    monkeypatch.setattr(exports, "export_formats", lambda *_, **options: asked.update(options))
    exports.export_run(run[0], "nowhere", images=100)
    assert asked["class_names"] == tuple("0123456789")
    digits = datasets.load("digits")
    for name, split, count in (("examples", "test", 100), ("representative_data", "train", 500)):
        known = {
            image.numpy().tobytes(): int(label) for image, label in digits.splits[split].examples()
        }
        images = np.concatenate(asked[name])
        assert len(images) == count
        labels = [known[image.tobytes()] for image in images]
        assert name != "examples" or labels == list(asked["labels"])


def test_errors_leave_no_run_directory(tmp_path):
    for changes, message in (
        ({"replicas": 2, "batch_size": 63}, "share the batch evenly"),
        ({"steps": 1, "epochs": 1}, "given twice"),
        ({"epochs": 0}, "at least one step"),
        ({"scale_learning_rate": True}, "with --batch-size; the recipe's own is 64"),
    ):
        with pytest.raises(ValueError, match=message):
            loop.train(TINY, run_dir=tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()


def test_another_run_is_not_overwritten(run):
    run_dir, record, _ = run
    with pytest.raises(ValueError, match="already holds another run"):
        loop.train(TINY, run_dir=run_dir, steps=1)
    assert records.read(run_dir) == record


def test_a_finished_run_stays_as_it_is(run, capsys):
    run_dir, record, replicas = run
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.*")}
    again = loop.train(TINY, run_dir=run_dir, steps=30, replicas=replicas, verbose=2, resume=True)
    assert again == record
    assert capsys.readouterr().out == f"The run in {run_dir} has finished already.\n"
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.*")} == before


RICH = dataclasses.replace(
    TINY,
    optimizer="lamb",
    learning_rate=0.01,
    ema_momentum=0.9,
    label_smoothing=0.1,
    options={"survival_probability": 0.8},
    image_sizes=((0, 6), (0.5, 8)),
)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2], ids=["one_replica", "two_replicas"])
def test_a_run_ends_the_same_however_often_it_is_stopped(tmp_path, monkeypatch, replicas):
    def follow(name):
        run_dir = tmp_path / name
        record = loop.train(
            RICH,
            run_dir=run_dir,
            steps=30,
            replicas=replicas,
            resume=True,
            checkpoint_every=0,
            verbose=0,
        )
        files = (keras.saving.load_model(run_dir / name) for name in ("best.keras", "last.keras"))
        weights = [w for model in files for w in (*model.get_weights(), *state(model.optimizer))]
        table, curves = (
            (run_dir / "metrics.csv").read_bytes(),
            (run_dir / "curves.png").read_bytes(),
        )
        return record, weights, table, curves

    def state(optimizer):
        return [variable.numpy() for variable in optimizer.variables]

    save = checkpoints.save

    def save_and_stop(folder, progress, arrays):
        save(folder, progress, arrays)
        if progress.step in stops:
            stops.remove(progress.step)
            raise Interrupted(15)

    record, weights, table, curves = follow("whole")
    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    stops = [7, 20, 30]  # within an epoch, at the end of one, at the end of all
    while stops:
        with pytest.raises(Interrupted):
            follow("parts")
    again, same_weights, same_table, same_curves = follow("parts")
    assert again.results == record.results
    assert (again.resumed, record.resumed) == (3, 0)
    assert (same_table, same_curves) == (table, curves)
    for one, two in zip(weights, same_weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_run_whose_checkpoints_are_all_damaged_keeps_its_best_weights(tmp_path, monkeypatch):
    def follow():
        loop.train(TINY, run_dir=tmp_path, steps=2, resume=True, verbose=0)

    save = checkpoints.save

    def save_and_stop(folder, progress, arrays):
        save(folder, progress, arrays)
        raise Interrupted(15)

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(Interrupted):
        follow()
    (checkpoint,) = tmp_path.glob("checkpoints/step-*")
    checkpoint.write_bytes(b"")
    best = (tmp_path / "best.keras").read_bytes()
    with pytest.raises(ValueError, match="all damaged"):
        follow()
    assert (tmp_path / "best.keras").read_bytes() == best
    assert records.read(tmp_path).resumed == 0  # a refusal is no continuation


def test_a_run_that_diverges_ends_at_once_and_keeps_what_was_good(tmp_path):
    recipe = dataclasses.replace(TINY, learning_rate=1e30)
    with pytest.raises(NonFiniteLoss, match="diverged") as error:
        loop.train(recipe, run_dir=tmp_path / "run", steps=30, checkpoint_every=0, verbose=0)
    assert str(error.value).startswith(
        "The training has diverged. Expected a finite loss and finite weights. Received: loss=nan "
        "at step "
    )
    step = int(str(error.value).partition("at step ")[2].partition(".")[0])
    progress, arrays = checkpoints.load_newest(tmp_path / "run" / "checkpoints")
    assert progress.step < step <= 3
    assert checkpoints.is_finite(arrays)
    assert not (tmp_path / "run" / "best.keras").exists()


def test_a_split_without_images_is_refused_at_once():
    sizes = {"train": 8, "validation": 0, "test": 0}
    dataset = types.SimpleNamespace(
        name="folder:pets",
        splits={name: types.SimpleNamespace(num_examples=n) for name, n in sizes.items()},
    )
    with pytest.raises(ValueError, match="no images") as error:
        loop.check_complete(dataset)
    assert str(error.value) == (
        "'folder:pets' has no images for validation and test. Expected at least one in each "
        "split. Received: train 8, validation 0, test 0. Add images to each class, or give the "
        "splits folders of their own."
    )


def test_scores_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(7), size=200)
    labels = random.integers(7, size=200)
    scores = evaluate.score(probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    assert scores.count == 200
    assert scores.top1 == sklearn.metrics.accuracy_score(labels, predicted)
    assert scores.top5 == sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5)
    assert scores.cross_entropy == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    np.testing.assert_array_equal(
        scores.confusion, sklearn.metrics.confusion_matrix(labels, predicted)
    )


def test_five_classes_have_no_top_five_and_certain_errors_stay_finite():
    scores = evaluate.score(np.eye(5)[[0, 1]], [0, 2])
    assert (scores.top1, scores.top5) == (0.5, None)
    assert np.isfinite(scores.cross_entropy)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_every_image_is_scored_once_under_any_number_of_replicas(replicas):
    digits = datasets.load("digits")
    with make_strategy(replicas).scope():
        model = keras_resnet.build("cifar_resnet8", input_shape=(8, 8, 1), classes=10)
    split = digits.splits["test"]
    scores = evaluate.evaluate(model, split, batch_size=14, preprocessing=digits.preprocessing)
    images, labels = zip(*split.examples().as_numpy_iterator())
    expected = evaluate.score(
        model(digits.preprocessing(np.stack(images)), training=False).numpy(), np.stack(labels)
    )
    assert scores.count == 360
    assert scores.top1 == pytest.approx(expected.top1, abs=1e-9)
    assert scores.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-5)
    np.testing.assert_array_equal(scores.confusion, expected.confusion)


def test_a_model_with_other_classes_is_refused():
    model = keras_resnet.build("cifar_resnet8", input_shape=(8, 8, 1), classes=3)
    with pytest.raises(ValueError, match="classes") as error:
        evaluate.check_fits(model, datasets.load("digits"))
    assert str(error.value) == (
        "The model's classes do not fit the labels of 'digits'. Expected 10 classes. Received: "
        "'cifar_resnet8' with 3. Choose the dataset it was trained on with --dataset, or train it "
        "on this one."
    )


def test_images_whose_classes_are_in_another_order_are_refused(run, monkeypatch):
    digits = datasets.load("digits")
    names = ("1", "0", *digits.class_names[2:])
    monkeypatch.setattr(
        datasets, "load", lambda *_, **__: dataclasses.replace(digits, class_names=names)
    )
    for use in (evaluate.evaluate_run, lambda run_dir: exports.export_run(run_dir, run_dir / "x")):
        with pytest.raises(ValueError, match="another order") as error:
            use(run[0])
        assert str(error.value) == (
            "The classes of 'digits' are in another order than 'cifar_resnet8' learnt them. "
            "Expected '0' as class 0. Received: '1'. Prepare the images with the classes of the "
            "training, in its order."
        )
    names = tuple(f"digit {name}" for name in digits.class_names)  # others than the run's
    assert evaluate.evaluate_run(run[0])[0].count == 360


def test_a_model_with_other_channels_is_refused():
    model = keras_resnet.build("cifar_resnet8", classes=10)
    with pytest.raises(ValueError, match="channels") as error:
        evaluate.check_fits(model, datasets.load("digits"))
    assert str(error.value) == (
        "The model's input does not fit the images of 'digits'. Expected 1 channels. Received: "
        "'cifar_resnet8' with 3. Choose the dataset it was trained on with --dataset, or train it "
        "on this one."
    )


def test_an_unfinished_run_is_refused(tmp_path):
    data = {"skip_corrupt": False, "skipped": []}
    records.write(tmp_path, records.new_record(TINY, seed=0, replicas=1, data=data))
    with pytest.raises(ValueError, match="has not finished"):
        evaluate.evaluate_run(tmp_path)


def test_wrong_predictions_are_marked_red(tmp_path):
    images = np.zeros((2, 8, 8, 1), "uint8")
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])

    def red_pixels(labels):
        path = tmp_path / "grid.png"
        plots.prediction_grid(images, labels, probabilities, ["cat", "dog"], path, title="pets")
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        return ((pixels[..., 0] > 150) & (pixels[..., 1:] < 80).all(axis=-1)).sum()

    assert red_pixels([0, 1]) == 0
    assert red_pixels([0, 0]) > 200


def test_curves_of_one_epoch_are_drawn(tmp_path):
    names = ("accuracy", "val_accuracy", "cross_entropy", "val_cross_entropy", "learning_rate")
    plots.training_curves({name: [0.5] for name in names}, tmp_path / "curves.png", title="one")
    width, height = Image.open(tmp_path / "curves.png").size
    assert width > 1000
    assert height > 300
