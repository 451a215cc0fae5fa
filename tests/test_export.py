"""The exports run in their real runtimes, agree with Keras, and destroy nothing when they fail."""

import dataclasses
import importlib
import json
import os
import pathlib

import exported
import keras
import numpy as np
import pytest
import tensorflow as tf
from exported import IMAGES, LABELS, PREPROCESSING, RAW, contents, make_model, run_python

import keras_resnet
from keras_resnet import export, resampling
from keras_resnet.export import ExportMismatch, Tolerance
from keras_resnet.export.examples import Examples
from keras_resnet.export.staging import staged

# The functions of these modules hide the modules themselves behind their names.
tflite_module = importlib.import_module("keras_resnet.export.tflite")
saved_model_module = importlib.import_module("keras_resnet.export.saved_model")
runtime = importlib.import_module("keras_resnet.export.runtime")


@pytest.fixture(scope="module")
def model():
    return exported.trained_model()


@pytest.fixture(scope="module")
def exports(model, tmp_path_factory):
    """One report per format."""
    folder = tmp_path_factory.mktemp("exports")
    reports = [export.saved_model(model, folder / "saved", examples=RAW, labels=LABELS)]
    for quantization in (None, "float16", "int8"):
        reports.append(
            export.tflite(
                model,
                folder / f"{quantization}.tflite",
                quantization=quantization,
                representative_data=IMAGES,
                examples=IMAGES,
                labels=LABELS,
            )
        )
    return {report.format: report for report in reports}


# The SavedModel


def test_saved_model_loads_with_tensorflow_alone(model, exports, tmp_path):
    raw = np.random.default_rng(1).integers(0, 256, (5, 24, 19, 3), dtype="uint8")
    np.save(tmp_path / "raw.npy", raw)
    code = """
import sys
sys.modules["keras"] = sys.modules["keras_resnet"] = None
import numpy as np, tensorflow as tf
served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answers = served(images=tf.constant(np.load(sys.argv[2] + "/raw.npy")))
np.save(sys.argv[2] + "/answers.npy", answers["probabilities"].numpy())
"""
    run_python(code, exports["saved_model"].path, tmp_path)
    expected = model.predict(PREPROCESSING(raw), verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), expected, atol=1e-5)


def test_saved_model_signature(exports):
    served = tf.saved_model.load(exports["saved_model"].path).signatures
    assert set(served) == {"serving_default", "encoded", "features"}
    (images,) = served["serving_default"].structured_input_signature[1].values()
    assert (images.name, images.dtype) == ("images", tf.uint8)
    assert images.shape.as_list() == [None, None, None, 3]
    assert served["serving_default"].structured_outputs["probabilities"].shape[1] == 3


def test_saved_model_stores_every_weight_once(model, exports):
    stored = tf.train.list_variables(exports["saved_model"].path + "/variables/variables")
    shapes = [tuple(shape) for name, shape in stored if name.endswith("VARIABLE_VALUE")]
    folded = keras_resnet.surgery.fold_batch_norm(model)
    assert sorted(shapes) == sorted(tuple(weight.shape) for weight in folded.weights)
    assert len(folded.weights) < len(model.weights) / 2


@pytest.mark.parametrize("resize_size", [None, 20])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_saved_model_resizes_as_the_preprocessing_does(model, tmp_path, resize_size, interpolation):
    preprocessing = dataclasses.replace(
        PREPROCESSING, resize_size=resize_size, interpolation=interpolation
    )
    rng = np.random.default_rng(2)
    sizes = [(16, 16), (17, 41), (50, 31), (9, 12), (21, 16)]
    images = [rng.integers(0, 256, (*size, 3), dtype="uint8") for size in sizes]
    report = export.saved_model(
        model, tmp_path / "saved", examples=images, preprocessing=preprocessing
    )
    assert report.examples == len(sizes)
    assert report.max_probability_difference < 1e-5


@pytest.mark.parametrize("given", [(50, 31), (16, 30), (9, 12)])
def test_images_that_do_not_cover_the_crop_keep_their_proportions(given):
    preprocessing = dataclasses.replace(PREPROCESSING, size=(16, 24), resize_size=18)
    images = np.random.default_rng(2).integers(0, 256, (2, *given, 3)).astype("float32")
    received = resampling.resize_and_crop(tf.constant(images), preprocessing)
    np.testing.assert_array_equal(received, preprocessing.resize(images))


def test_saved_model_of_any_input_size_only_normalizes(model, tmp_path):
    anysize = make_model(input_shape=(None, None, 3))
    anysize.set_weights(model.get_weights())
    raw = np.random.default_rng(3).integers(0, 256, (2, 23, 18, 3), dtype="uint8")
    export.saved_model(anysize, tmp_path / "saved", examples=raw)
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    expected = anysize.predict(PREPROCESSING.normalize(raw), verbose=0)
    answers = served(images=tf.constant(raw))["probabilities"]
    np.testing.assert_allclose(answers, expected, atol=1e-5)


# TFLite


@pytest.mark.parametrize(
    ("format", "tolerance"), [("tflite", 1e-5), ("tflite_float16", 1e-2), ("tflite_int8", 0.2)]
)
def test_tflite_computes_what_keras_computes(model, exports, format, tolerance):
    answers = export.load_tflite(exports[format].path)(IMAGES)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, model.predict(IMAGES, verbose=0), atol=tolerance)


def test_tflite_sizes(model, exports):
    float32 = 4 * sum(np.prod(w.shape) for w in model.trainable_weights)
    assert exports["tflite"].bytes < 1.2 * float32
    assert exports["tflite_float16"].bytes < 0.6 * exports["tflite"].bytes
    assert exports["tflite_int8"].bytes < 0.4 * exports["tflite"].bytes


@pytest.mark.parametrize("kind", ["saved_model", "tflite"])
def test_a_wrong_fold_is_noticed(model, tmp_path, monkeypatch, kind):
    """What is exported is folded; what it is compared with is not."""

    def wrongly_folded(original):
        folded = keras_resnet.surgery.fold_batch_norm(original)
        bias = folded.get_layer("stem_conv").bias
        bias.assign(bias + 0.5)
        return folded

    module = {"saved_model": saved_model_module, "tflite": tflite_module}[kind]
    monkeypatch.setattr(module, "fold_batch_norm", wrongly_folded)
    write, examples = getattr(export, kind), {"saved_model": RAW, "tflite": IMAGES}[kind]
    with pytest.raises(ExportMismatch, match="disagrees with the Keras model"):
        write(model, tmp_path / "m.tflite", examples=examples)
    assert not list(tmp_path.iterdir())


def test_load_tflite_refuses_other_shapes(exports):
    with pytest.raises(ValueError, match="fit the model") as error:
        export.load_tflite(exports["tflite"].path)(np.zeros((2, 32, 32, 3)))
    assert str(error.value) == (
        "The images do not fit the model. Expected shape (batch, 16, 16, 3). "
        "Received: shape (2, 32, 32, 3)"
    )


def test_an_endless_training_dataset_calibrates_and_is_compared_on(model, tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).shuffle(160).repeat().batch(32)
    report = export.tflite(
        model, tmp_path / "m.tflite", quantization="int8", representative_data=dataset
    )
    assert report.examples == 500
    assert report.accuracy is None  # accuracy on training images would mislead
    assert report.top1_agreement > 0.95


# Every model there is


def test_logits_become_probabilities(tmp_path):
    logits = make_model(classifier_activation=None)
    expected = keras.ops.softmax(logits.predict(IMAGES[:8], verbose=0))
    export.tflite(logits, tmp_path / "m.tflite", examples=IMAGES[:8])
    answers = export.load_tflite(tmp_path / "m.tflite")(IMAGES[:8])
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_bfloat16_model_is_exported_in_float32(model, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = make_model()
    mixed.set_weights(model.get_weights())
    report = export.tflite(mixed, tmp_path / "m.tflite", examples=IMAGES)
    answers = export.load_tflite(tmp_path / "m.tflite")(IMAGES)
    assert report.max_probability_difference < 1e-5
    np.testing.assert_allclose(answers, model.predict(IMAGES, verbose=0), atol=1e-5)
    assert mixed.compute_dtype == "bfloat16"  # the user's model is not touched


def test_bottlenecks_max_pooling_and_stochastic_depth(tmp_path):
    variant = keras_resnet.Variant(
        "tiny", blocks=(1, 1), filters=(4, 8), block="bottleneck", survival_probability=0.5
    )
    bottleneck = keras_resnet.build(variant, classes=3, input_shape=(33, 31, 3))
    images = np.random.default_rng(4).uniform(-2, 2, (100, 33, 31, 3)).astype("float32")
    for quantization in (None, "int8"):
        report = export.tflite(
            bottleneck,
            tmp_path / "m.tflite",
            quantization=quantization,
            representative_data=images,
        )
        assert report.max_probability_difference < (0.1 if quantization else 1e-5)


@pytest.mark.slow
def test_model_of_a_mirrored_strategy(tmp_path):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import exported, keras_resnet
strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
)
with strategy.scope():
    model = exported.make_model()
    model.compile("sgd", "sparse_categorical_crossentropy")
train_ds = tf.data.Dataset.from_tensor_slices((exported.IMAGES, exported.LABELS)).batch(32)
model.fit(train_ds, verbose=0)
int8 = keras_resnet.export.tflite(
    model, sys.argv[1] + "/m.tflite", quantization="int8", representative_data=train_ds
)
saved = keras_resnet.export.saved_model(model, sys.argv[1] + "/m", examples=exported.RAW)
print(int8.examples, saved.max_probability_difference < 1e-5)
with strategy.scope():
    try:
        keras_resnet.export.saved_model(model, sys.argv[1] + "/m", examples=exported.RAW)
    except ValueError as error:
        print(error)
"""
    first, second = run_python(code, tmp_path, os.path.dirname(__file__)).splitlines()
    assert first == "160 True"
    assert second == (
        "An export runs on one device. Expected a call outside of `strategy.scope()`. Received: a "
        "call inside the scope of MirroredStrategy. The model itself may come from the scope."
    )


# The proof


def test_reports_say_what_was_measured(model, exports):
    predicted = model.predict(IMAGES, verbose=0).argmax(axis=1)
    for format, report in exports.items():
        assert report.examples == len(RAW)
        assert report.keras_accuracy == pytest.approx(np.mean(predicted == LABELS))
        assert report.accuracy == pytest.approx(report.keras_accuracy, abs=0.02)
        assert report.top1_agreement >= 0.95
        assert 0 <= report.mean_probability_difference <= report.max_probability_difference
        assert report.milliseconds > 0
        assert report.keras_milliseconds > 0
        assert json.loads(json.dumps(report.to_dict()))["format"] == format


def test_a_file_for_several_images_is_timed_with_so_many(monkeypatch):
    report_module = importlib.import_module("keras_resnet.export.report")
    monkeypatch.setattr(report_module, "_milliseconds", lambda call, images: 6.0 * len(images))
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.GlobalMaxPooling2D()])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    report = report_module.compare(
        format="file",
        path="file",
        written=pathlib.Path(__file__),
        export=lambda images: 1 - model.predict(images, verbose=0),
        model=model,
        examples=Examples([IMAGES], model.predict(IMAGES, verbose=0)[:, 0] > 0.5),
        tolerance=Tolerance(),
        batch_size=4,
    )
    assert report.milliseconds == 6.0
    # One output is the probability of the second of two classes.
    assert (report.keras_accuracy, report.accuracy, report.top1_agreement) == (1, 0, 0)


def test_size_on_disk(exports):
    folder = exports["saved_model"].path
    files = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    assert exports["saved_model"].bytes == sum(map(os.path.getsize, files))
    assert exports["tflite"].bytes == os.path.getsize(exports["tflite"].path)


def test_table(exports):
    rows = export.table_rows(exports.values())
    assert [row[0] for row in rows] == ["format", "keras", *exports]
    assert {len(row) for row in rows} == {6}
    lines = export.format_table(exports.values()).splitlines()
    assert len(lines) == 6
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("m.tflite", lambda m, p, t: export.tflite(m, p, examples=IMAGES[:8], tolerance=t)),
        ("m", lambda m, p, t: export.saved_model(m, p, examples=RAW[:8], tolerance=t)),
    ],
)
def test_a_failed_export_leaves_the_good_one(model, tmp_path, name, make):
    make(model, tmp_path / name, None)
    good = contents(tmp_path)
    impossible = Tolerance(max_probability_difference=-1)
    with pytest.raises(ExportMismatch, match=r"Expected probabilities that differ by at most -1\."):
        make(model, tmp_path / name, impossible)
    assert contents(tmp_path) == good
    make(model, tmp_path / name, None)  # a proven one takes its place
    assert os.listdir(tmp_path) == [name]


def test_a_wrong_int8_file_is_found_out(model, tmp_path, monkeypatch):
    shuffled = make_model()
    shuffled.set_weights([np.roll(weight, 1, axis=-1) for weight in model.get_weights()])
    convert = tflite_module.convert
    shuffled = keras_resnet.surgery.fold_batch_norm(shuffled)
    monkeypatch.setattr(tflite_module, "convert", lambda _, **how: convert(shuffled, **how))
    with pytest.raises(ExportMismatch) as error:
        export.tflite(model, tmp_path / "m.tflite", quantization="int8", representative_data=IMAGES)
    assert str(error.value).startswith(
        "The tflite_int8 export disagrees with the Keras model. Expected a share of images with a "
        "clearly different class by at most 0.05. Received: "
    )
    assert os.listdir(tmp_path) == []


def test_a_model_of_nan_is_found_out(model, tmp_path):
    broken = make_model()
    broken.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(ExportMismatch, match="Received: nan"):
        export.saved_model(broken, tmp_path / "m", examples=RAW[:4])
    with pytest.raises(ExportMismatch, match="Received: nan"):  # where classes are all that counts
        export.tflite(broken, tmp_path / "m.tflite", quantization="dynamic", examples=IMAGES[:4])
    assert os.listdir(tmp_path) == []


def test_near_ties_are_no_disagreement(model, tmp_path, monkeypatch):
    def swap_first_two(path):
        load = runtime.load_tflite(path)
        return lambda images: load(images)[:, [1, 0, 2]]

    undecided = make_model()
    head = undecided.get_layer("predictions")
    head.kernel.assign(keras.ops.zeros_like(head.kernel))
    monkeypatch.setattr(tflite_module, "load_tflite", swap_first_two)
    only_clear = Tolerance(clear_disagreements=0.0)
    # Logits of 0.2 and 0 are nearly tied, those of 2 and 0 are not.
    head.bias.assign([0.2, 0.0, -9.0])
    path = tmp_path / "m.tflite"
    report = export.tflite(undecided, path, examples=IMAGES[:8], tolerance=only_clear)
    assert report.top1_agreement == 0
    head.bias.assign([2.0, 0.0, -9.0])
    with pytest.raises(ExportMismatch, match="clearly different class"):
        export.tflite(undecided, path, examples=IMAGES[:8], tolerance=only_clear)


def test_the_console_stays_clean(model, tmp_path, capfd):
    export.saved_model(model, tmp_path / "m", examples=RAW[:4])
    export.tflite(model, tmp_path / "m.tflite", quantization="int8", representative_data=IMAGES)
    assert capfd.readouterr() == ("", "")


# Bad input


def test_what_is_not_an_export_is_not_replaced(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    (tmp_path / "m.tflite").write_text("precious as well")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="not replaced") as error:
        export.saved_model(model, tmp_path / "photos", examples=RAW)
    assert str(error.value) == (
        "The output exists and is not a SavedModel, so it is not replaced. Expected a new path or "
        f"an earlier SavedModel. Received: path='{tmp_path / 'photos'}'"
    )
    with pytest.raises(ValueError, match="is not a TFLite file"):
        export.tflite(model, tmp_path / "m.tflite", examples=IMAGES)
    assert contents(tmp_path) == before


def test_models_that_cannot_be_exported(model, tmp_path):
    features = make_model(include_top=False, pooling=None, classes=None)
    with pytest.raises(ValueError, match="not an image classifier") as error:
        export.tflite(features, tmp_path / "m.tflite", examples=IMAGES)
    assert str(error.value).endswith("Received: (None, 16, 16, 3), (None, 4, 4, 64)")
    with pytest.raises(ValueError, match="The model has no graph"):
        export.tflite(keras.Sequential(), tmp_path / "m.tflite", examples=IMAGES)
    with pytest.raises(ValueError, match=r"The model has no graph.*Received: str 'model.keras'"):
        export.tflite("model.keras", tmp_path / "m.tflite", examples=IMAGES)
    with pytest.raises(ValueError, match="TFLite needs a fixed image size"):
        export.tflite(
            make_model(input_shape=(None, None, 3)), tmp_path / "m.tflite", examples=IMAGES
        )
    keras.config.set_image_data_format("channels_first")
    first = make_model(input_shape=(3, 16, 16))
    with pytest.raises(ValueError, match=r"Received: 'channels_first' in layer 'stem_"):
        export.tflite(first, tmp_path / "m.tflite", examples=IMAGES)


def test_preprocessing_must_be_there_and_fit(model, tmp_path):
    plain = keras.Model(model.inputs, model.outputs, name="plain")
    with pytest.raises(ValueError, match="does not say how its images are preprocessed"):
        export.saved_model(plain, tmp_path / "m", examples=RAW)
    with pytest.raises(ValueError, match="fit the model") as error:
        export.saved_model(
            model, tmp_path / "m", examples=RAW, preprocessing=keras_resnet.Preprocessing()
        )
    assert str(error.value) == (
        "The preprocessing does not fit the model. Expected size (16, 16) and 3 channels. "
        "Received: size (224, 224) and 3 channels. Pass "
        "`preprocessing=dataclasses.replace(model.preprocessing, size=..., mean=..., std=...)`."
    )
    with pytest.raises(ValueError, match="takes raw images") as error:
        export.saved_model(model, tmp_path / "m", examples=IMAGES)
    assert str(error.value) == (
        "The SavedModel takes raw images. Expected uint8 values 0..255 in `examples`. "
        "Received: float32"
    )


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_model_module, "write_saved_model", write)
    with pytest.raises(OSError, match="No space left"):
        export.saved_model(model, tmp_path / "m", examples=RAW)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_earlier_one(tmp_path, monkeypatch):
    earlier, rename = tmp_path / "m", pathlib.Path.rename
    earlier.mkdir()
    (earlier / "file").write_text("good")

    def busy(path, target):
        if (path / "new").exists():
            raise OSError(16, "Device or resource busy")
        return rename(path, target)

    def replace():
        with staged(earlier) as made:
            made.mkdir()
            (made / "new").write_text("new")

    monkeypatch.setattr(pathlib.Path, "rename", busy)
    with pytest.raises(export.WriteError, match="busy"):
        replace()
    assert contents(tmp_path) == {pathlib.Path("m/file"): b"good"}
