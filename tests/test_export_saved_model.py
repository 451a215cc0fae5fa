"""A SavedModel answers as a server asks: images, files, features, names, and in bfloat16."""

import contextlib
import importlib
import io
import os
import pathlib
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from exported import contents
from families import SMALL
from PIL import Image
from trained import look_trained

import keras_resnet
from keras_resnet import export
from keras_resnet.export import ExportMismatch

# The function of this module hides the module itself behind its name.
saved_model_module = importlib.import_module("keras_resnet.export.saved_model")

NAMES = ("cat", "dog", "Straßenbahn")
PREPROCESSING = keras_resnet.Preprocessing(
    size=(16, 16), resize_size=20, mean=(0.45, 0.5, 0.55), std=(0.3, 0.25, 0.2)
)


def smooth(height, width, channels=3, seed=0):
    """A picture of slow waves, which JPEG keeps: uint8 of shape `(height, width, channels)`."""
    rng = np.random.default_rng(seed)
    y, x = (grid[..., np.newaxis] for grid in np.mgrid[:height, :width])
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0, 0.3, (4, 3, channels))]
    return (127.5 + 127 * np.mean(waves, axis=0)).astype("uint8")


RAW = np.stack([smooth(24, 19, seed=seed) for seed in range(6)])


def make_model(seed=0, **options):
    options = {"classes": 3, "input_shape": (16, 16, 3)} | options
    model = look_trained(keras_resnet.CifarResNet(8, weights=None, **options), seed)
    if options["input_shape"][-1] == 3:
        model.preprocessing = PREPROCESSING
    return model


@pytest.fixture(scope="module")
def model():
    """A small network that decides, for each class in turn: its classifier is solved for."""
    keras.utils.set_random_seed(0)
    model = make_model()
    pooled = keras.Model(model.input, model.get_layer("head_pool").output)
    features = np.hstack([pooled.predict(PREPROCESSING(RAW), verbose=0), np.ones((len(RAW), 1))])
    solution = np.linalg.lstsq(features, 4 * np.eye(3)[np.arange(len(RAW)) % 3], rcond=1e-3)[0]
    model.get_layer("predictions").set_weights([solution[:-1], solution[-1]])
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "saved"
    export.saved_model(model, path, examples=RAW, class_names=NAMES)
    return path


@pytest.fixture(scope="module")
def served(folder):
    return load(folder)


def load(path):
    return tf.saved_model.load(str(path)).signatures


@contextlib.contextmanager
def full_disk(limit):
    """Within the block no file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# Signatures


def command(*arguments):
    """The command that comes with TensorFlow."""
    program = pathlib.Path(sys.executable).with_name("saved_model_cli")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(model, folder, tmp_path):
    shown = command("show", "--dir", folder, "--tag_set", "serve", "--all")
    for line in (
        "signature_def['serving_default']",
        "signature_def['encoded']",
        "signature_def['features']",
        "shape: (-1, -1, -1, 3)",
        "shape: (-1, 64)",
    ):
        assert line in shown
    np.save(tmp_path / "raw.npy", RAW)
    command(
        *("run", "--dir", folder, "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--inputs", f"images={tmp_path}/raw.npy", "--outdir", tmp_path),
    )
    expected = model.predict(PREPROCESSING(RAW), verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-5)
    labels = np.load(tmp_path / "labels.npy", allow_pickle=True)
    assert [name.decode() for name in labels] == [NAMES[best] for best in expected.argmax(axis=1)]


def test_signatures_have_types_and_names(served):
    spec = served["encoded"].structured_input_signature[1]["encoded"]
    assert (spec.dtype, spec.shape.as_list()) == (tf.string, [None])
    for name in ("serving_default", "encoded"):
        outputs = served[name].structured_outputs
        assert {key: value.dtype for key, value in outputs.items()} == {
            "probabilities": tf.float32,
            "labels": tf.string,
        }


def test_labels_are_the_names_of_the_best_classes(served):
    probabilities = served["serving_default"](images=tf.constant(RAW))["probabilities"]
    labels = served["serving_default"](images=tf.constant(RAW))["labels"].numpy()
    best = np.argmax(probabilities, axis=1)
    assert len(set(best)) > 1  # or any constant would do
    assert [label.decode() for label in labels] == [NAMES[index] for index in best]


def test_files_of_any_kind_and_size_are_decoded_as_pillow_does(model, served):
    colour, grey = Image.fromarray(smooth(40, 31)), Image.fromarray(smooth(25, 50, 1)[..., 0])
    alpha = Image.fromarray(np.dstack([smooth(20, 20), np.full((20, 20), 255, "uint8")]))
    files = [
        encoded(colour, "PNG"),
        encoded(grey, "PNG"),
        encoded(alpha, "PNG"),
        encoded(colour.quantize(200), "PNG"),  # a palette
        encoded(colour, "JPEG", quality=95, subsampling=0),
        encoded(grey, "JPEG", quality=95),
        encoded(colour, "JPEG", quality=95, progressive=True, subsampling=0),
    ]
    answers = served["encoded"](encoded=tf.constant(files))["probabilities"]
    pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    inputs = np.stack([PREPROCESSING(image) for image in pixels])
    expected = model.predict(inputs, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.2  # pictures that differ
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_features_are_what_the_classifier_reads(model, served):
    received = served["features"](images=tf.constant(RAW))["features"]
    pooled = keras.Model(model.input, model.get_layer("head_pool").output)
    expected = pooled.predict(PREPROCESSING(RAW), verbose=0)
    np.testing.assert_allclose(received, expected, atol=1e-5 * np.abs(expected).max())


def test_files_of_one_size_go_to_a_model_of_any_size(model, tmp_path):
    anysize = make_model(input_shape=(None, None, 3))
    anysize.set_weights(model.get_weights())
    export.saved_model(anysize, tmp_path / "saved", examples=RAW)
    served = load(tmp_path / "saved")["encoded"]
    assert set(served.structured_outputs) == {"probabilities"}  # without names no labels
    files = [encoded(Image.fromarray(image), "PNG") for image in RAW]
    expected = anysize.predict(PREPROCESSING.normalize(RAW), verbose=0)
    answers = served(encoded=tf.constant(files))["probabilities"]
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        served(encoded=tf.constant([files[0], encoded(Image.new("RGB", (8, 8)), "PNG")]))


@pytest.mark.parametrize("channels", [1, 2])
def test_other_channels(tmp_path, channels):
    other = make_model(input_shape=(16, 16, channels))
    raw = np.stack([smooth(20, 18, channels, seed) for seed in range(3)])
    export.saved_model(other, tmp_path / "saved", examples=raw)
    served = load(tmp_path / "saved")
    assert ("encoded" in served) == (channels == 1)
    if channels == 1:
        files = [encoded(Image.fromarray(image[..., 0]), "PNG") for image in raw]
        expected = other.predict(other.preprocessing(raw), verbose=0)
        answers = served["encoded"](encoded=tf.constant(files))["probabilities"]
        np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_an_ensemble_has_no_features(model, tmp_path):
    both = keras_resnet.ensemble([model, make_model(seed=1)])
    report = export.saved_model(both, tmp_path / "saved", examples=RAW)
    assert report.max_probability_difference < 1e-5
    assert list(load(tmp_path / "saved")) == ["serving_default", "encoded"]


def test_a_signature_that_gives_something_else_is_found_out(model, tmp_path, monkeypatch):
    def with_other_features(model, *rest):
        bias = model.get_layer("stage3_block1_conv2").bias
        bias.assign(bias + 0.5)
        return original(model, *rest) | {"serving_default": unharmed["serving_default"]}

    original, unharmed = saved_model_module.signatures, {}
    folded = keras_resnet.surgery.fold_batch_norm(model)
    unharmed = original(folded, PREPROCESSING)
    monkeypatch.setattr(saved_model_module, "signatures", with_other_features)
    monkeypatch.setattr(saved_model_module, "write_saved_model", write_both(folded))
    with pytest.raises(ExportMismatch, match="The signature 'encoded' disagrees with"):
        export.saved_model(model, tmp_path / "saved", examples=RAW)
    assert os.listdir(tmp_path) == []


def write_both(other):
    def write(path, signatures, model):
        module = tf.Module()
        module.weights = [weight.value for each in (model, other) for weight in each.weights]
        tf.saved_model.save(module, str(path), signatures=signatures)

    return write


# bfloat16


def test_bfloat16_halves_the_weights_and_keeps_the_answers(model, folder, tmp_path):
    report = export.saved_model(
        model, tmp_path / "bf", examples=RAW, precision="bfloat16", class_names=NAMES
    )
    assert report.format == "saved_model_bfloat16"
    assert report.top1_agreement == 1
    assert 1e-5 < report.max_probability_difference < 0.1  # it is not float32
    data = "variables/variables.data-00000-of-00001"
    assert (tmp_path / "bf" / data).stat().st_size < 0.53 * (folder / data).stat().st_size
    variables = tf.train.load_checkpoint(str(tmp_path / "bf" / "variables" / "variables"))
    shapes = variables.get_variable_to_shape_map()
    dtypes = {variables.get_variable_to_dtype_map()[n] for n in shapes if len(shapes[n]) == 4}
    assert dtypes == {tf.bfloat16}
    answers = load(tmp_path / "bf")["serving_default"](images=tf.constant(RAW))
    assert answers["probabilities"].dtype == tf.float32
    np.testing.assert_allclose(np.sum(answers["probabilities"], axis=1), 1, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_family_is_served(tmp_path, family, precision):
    model = keras_resnet.build(SMALL[family], input_shape=(16, 16, 3))
    export.saved_model(model, tmp_path / "saved", examples=RAW, precision=precision)
    assert list(load(tmp_path / "saved")) == ["serving_default", "encoded", "features"]


# Bad input


def test_requests_that_do_not_fit(model, tmp_path):
    with pytest.raises(ValueError, match="names") as error:
        export.saved_model(model, tmp_path / "saved", examples=RAW, class_names=NAMES[:2])
    assert str(error.value) == (
        "The names do not fit the classes. Expected 3 names in `class_names`. Received: 2"
    )
    with pytest.raises(
        ValueError, match=r"Unknown precision\. Expected one of float32, bfloat16\. "
    ):
        export.saved_model(model, tmp_path / "saved", examples=RAW, precision="float16")
    assert os.listdir(tmp_path) == []


@keras.saving.register_keras_serializable("tests")
class Halves(keras.layers.Layer):
    """A layer that forgets its arguments."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return super().get_config()


def test_a_layer_that_cannot_be_copied_is_named(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(Halves(0.5, name="halves_of_all")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model.preprocessing = PREPROCESSING
    with pytest.raises(ValueError, match="A layer cannot be copied") as error:
        export.saved_model(model, tmp_path / "saved", examples=RAW)
    assert "Received: Halves 'halves_of_all': " in str(error.value)


def test_a_path_below_a_file_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("precious")
    path = tmp_path / "file" / "saved"
    with pytest.raises(export.WriteError) as error:
        export.saved_model(model, path, examples=RAW)
    assert str(error.value) == (
        "The export cannot be written. Expected a folder with room for it, and permission. "
        f"Received: [Errno 17] File exists: '{path.parent}' (path='{path}'). "
        "Free some space or choose another path."
    )
    assert contents(tmp_path) == {pathlib.Path("file"): b"precious"}


def test_a_disk_that_fills_up_costs_nothing(model, tmp_path):
    earlier, new = tmp_path / "exports" / "saved", tmp_path / "new" / "deep" / "saved"
    export.saved_model(model, earlier, examples=RAW)
    good = contents(tmp_path)
    for path in (earlier, new):
        with full_disk(150_000), pytest.raises(export.WriteError) as error:
            export.saved_model(model, path, examples=RAW)
        assert str(error.value).startswith(
            "The export cannot be written. Expected a folder with room for it, and permission. "
        )
        assert "File too large" in str(error.value)
        assert contents(tmp_path) == good
        assert os.listdir(tmp_path) == ["exports"]


def test_grouped_convolutions_of_a_sequential_model_need_no_xla(tmp_path):
    """Keras wraps them in a program of XLA, which a server may not have."""
    layers = keras.layers.Conv2D(4, 3, groups=2), keras.layers.GlobalAveragePooling2D()
    classifier = keras.layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers, classifier])
    model.preprocessing = keras_resnet.Preprocessing(mean=(0.5,) * 4, std=(0.25,) * 4, size=(8, 8))
    raw = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 4), "uint8")
    export.saved_model(model, tmp_path / "saved", examples=raw)
    text = (tmp_path / "saved" / "saved_model.pb").read_bytes()
    assert b"Conv2D" in text
    assert b"_XlaMustCompile\x12\x02(\x01" not in text
