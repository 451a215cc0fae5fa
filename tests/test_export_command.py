"""Several formats at once: from Python, from `python -m keras_resnet.export`, and from a run."""

import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from exported import IMAGES, LABELS, PREPROCESSING, RAW, make_model, trained_model
from PIL import Image
from typer.testing import CliRunner

import keras_resnet
from keras_resnet import export
from keras_resnet.export import FORMATS, ExportsFailed, export_formats
from keras_resnet.export.__main__ import main
from training import loop
from training.__main__ import app
from training.recipes import get_recipe

# Its name is that of a function as well.
tflite_module = importlib.import_module("keras_resnet.export.tflite")

NAMES = ["cat", "dog", "Straßenbahn"]
BATCHES = [RAW[start : start + 32] for start in range(0, len(RAW), 32)]
FEW = [RAW[:8]]


@pytest.fixture(scope="module")
def model():
    return trained_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "small.keras"
    model.save(path)
    return path


def read_record(folder):
    return json.loads((folder / "record.json").read_text("utf-8"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The table


@pytest.mark.parity
def test_every_format_comes_out_of_the_table(model, tmp_path):
    reports = export_formats(
        model, tmp_path, list(FORMATS), examples=BATCHES, labels=LABELS, class_names=NAMES
    )
    assert [report.format for report in reports] == list(FORMATS)
    assert names(tmp_path) == sorted(["record.json", *(row.file_name for row in FORMATS.values())])
    entries = read_record(tmp_path)["exports"]
    assert [entry["format"] for entry in entries] == list(FORMATS)
    for entry, row in zip(entries, FORMATS.values()):
        assert entry["path"] == row.file_name
        assert entry["accuracy"] == pytest.approx(entry["keras_accuracy"], abs=0.02)


def test_files_take_raw_images_when_asked(model, tmp_path):
    export_formats(model, tmp_path, ["tflite_int8"], examples=BATCHES, include_preprocessing=True)
    answers = export.load_tflite(tmp_path / "model_int8.tflite")(RAW)
    expected = model.predict(IMAGES, verbose=0)
    assert np.mean(answers.argmax(axis=1) == expected.argmax(axis=1)) > 0.95


@pytest.mark.parity
def test_onnx_files_take_raw_images_when_asked(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX: make parity")
    export_formats(model, tmp_path, ["onnx"], examples=BATCHES, include_preprocessing=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(session.run(None, {"images": RAW})[0], expected, atol=1e-5)


def test_a_format_that_fails_costs_no_other(model, tmp_path):
    export_formats(model, tmp_path, ["tflite"], examples=FEW, about={"model": 1})
    (tmp_path / "model_float16.tflite").write_text("precious")
    with pytest.raises(ExportsFailed) as failed:
        export_formats(
            model,
            tmp_path,
            ["saved_model", "tflite_float16"],
            examples=FEW,
            about={"model": 1},
        )
    assert str(failed.value).startswith(
        "Not every format was exported. Expected 2. Received: 1. What failed:\n"
        "tflite_float16: The output exists and is not a TFLite file"
    )
    assert [report.format for report in failed.value.reports] == ["saved_model"]
    record = read_record(tmp_path)
    assert list(record["failures"]) == ["tflite_float16"]
    # What an earlier call made of the same model is still there, and so is its proof.
    made = [entry["format"] for entry in record["exports"]]
    assert made == ["saved_model", "tflite"]
    assert (tmp_path / "model_float16.tflite").read_text() == "precious"


def test_a_record_does_not_speak_of_another_model(model, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    reports = export_formats(
        model, tmp_path, ["tflite", "tflite"], examples=FEW, about={"model": 1}
    )
    assert len(reports) == 1
    assert [entry["format"] for entry in read_record(tmp_path)["exports"]] == ["tflite"]
    interrupted = dataclasses.replace(FORMATS["tflite"], export=interrupt)
    monkeypatch.setitem(FORMATS, "tflite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_formats(model, tmp_path, ["saved_model", "tflite"], examples=FEW, about={"model": 2})
    record = read_record(tmp_path)
    assert record["model"] == 2
    assert [entry["format"] for entry in record["exports"]] == ["saved_model"]


def test_the_record_of_a_run_is_not_replaced(model, tmp_path):
    (tmp_path / "record.json").write_text('{"recipe": {}}')
    with pytest.raises(ValueError, match="a record of something else, which is not replaced"):
        export_formats(model, tmp_path, ["tflite"], examples=FEW)
    assert names(tmp_path) == ["record.json"]
    with pytest.raises(ValueError, match=r"Unknown export format.*Did you mean 'tflite_int8'"):
        export_formats(model, tmp_path, ["tflite_int-8"], examples=FEW)


@pytest.mark.parametrize("include_preprocessing", [False, True])
@pytest.mark.parametrize("argument", ["examples", "representative_data"])
def test_images_that_are_scaled_already_are_refused(
    model, tmp_path, argument, include_preprocessing
):
    images = {"examples": FEW} | {argument: [RAW / np.float32(255)]}
    with pytest.raises(ValueError, match=f"0..255 in `{argument}`. Received: float32"):
        export_formats(
            model,
            tmp_path / "out",
            ["tflite_int8"],
            include_preprocessing=include_preprocessing,
            **images,
        )
    assert names(tmp_path) == []


# python -m keras_resnet.export


@pytest.fixture
def pictures(tmp_path):
    """A folder of the images as PNG files, in folders named as their classes."""
    for number, (image, label) in enumerate(zip(RAW[:12], LABELS)):
        path = tmp_path / "pictures" / NAMES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", "utf-8")
    return tmp_path / "pictures"


def test_the_command_needs_nothing_of_the_application(model, saved, pictures, tmp_path):
    program = (
        "import sys, runpy\n"
        "for name in ('typer', 'training', 'PIL', 'matplotlib'): sys.modules[name] = None\n"
        "runpy.run_module('keras_resnet.export', run_name='__main__', alter_sys=True)"
    )
    options = f"--images {pictures} --class-names {tmp_path}/names.txt --output {tmp_path}/out"
    options += " --formats saved_model,tflite"
    done = subprocess.run(
        [sys.executable, "-c", program, saved, *options.split()],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    header, first, *_, last = done.stdout.splitlines()
    assert header.split()[:2] == ["format", "accuracy"]
    right = np.mean(model.predict(IMAGES[:12], verbose=0).argmax(axis=1) == LABELS[:12])
    assert first.split()[:2] == ["keras", f"{right:.2%}"]
    assert last == f"Compared on 12 images. Written to {tmp_path}/out."
    assert names(tmp_path / "out") == ["model.tflite", "record.json", "saved_model"]
    sha256 = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert read_record(tmp_path / "out")["model"]["sha256"] == sha256


def test_arrays_and_the_preprocessing_of_any_keras_model(model, tmp_path, capsys):
    plain = keras.Model(model.inputs, model.outputs, name="plain")
    plain.save(tmp_path / "plain.keras")
    np.save(tmp_path / "images.npy", RAW)
    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "preprocessing.json").write_text(json.dumps(PREPROCESSING.to_dict()))
    words = f"{tmp_path}/plain.keras --images {tmp_path}/images.npy --output {tmp_path}/out"
    options = f"--labels {tmp_path}/labels.npy --limit 80 --formats tflite_int8"
    assert main([*words.split(), *options.split()]) == 2
    assert "does not say how its images are preprocessed" in capsys.readouterr().err
    options += f" --preprocessing {tmp_path}/preprocessing.json"
    with pytest.warns(UserWarning, match="80 calibration images are few"):
        assert main([*words.split(), *options.split()]) == 0
    (entry,) = read_record(tmp_path / "out")["exports"]
    right = model.predict(IMAGES[::2], verbose=0).argmax(axis=1) == LABELS[::2]
    assert (entry["examples"], entry["keras_accuracy"]) == (80, np.mean(right))


def test_a_failure_ends_with_code_1_and_the_table_of_the_others(tmp_path, pictures, capsys):
    anysize = make_model(input_shape=(None, None, 3))
    anysize.save(tmp_path / "anysize.keras")
    words = f"{tmp_path}/anysize.keras --images {pictures} --output {tmp_path}/out"
    assert main([*words.split(), "--formats", "saved_model,tflite"]) == 1
    output, errors = capsys.readouterr()
    assert [line.split()[0] for line in output.splitlines()] == ["format", "keras", "saved_model"]
    assert errors.startswith("Error: Not every format was exported. Expected 2. Received: 1.")
    assert "\ntflite: TFLite needs a fixed image size." in errors
    assert names(tmp_path / "out") == ["record.json", "saved_model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--formats onx", "Unknown export format. Expected one of saved_model,"),
        ("--images missing", "There is no image. Expected a .npy file, or a folder of JPEG or PNG"),
        ("--class-names other.txt", "There are folders of other classes."),
        ("--labels missing.npy", "No such file or directory: 'missing.npy'"),
        (
            "--images images.npy --limit 4 --labels labels.npy",
            "The labels are not those of the images. Expected as many as images in a .npy file: 8. "
            "Received: 12 in 'labels.npy'",
        ),
        ("--labels labels.npy", "as images in a .npy file: 0. Received: 12"),
        (
            "--images damaged",
            "The image cannot be read. Expected a file as `--help` says. Received",
        ),
        ("--preprocessing fields.json", "The preprocessing cannot be read."),
    ],
)
def test_requests_that_do_not_fit(saved, pictures, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("other.txt").write_text("cat\ndog\nbus\n")
    pathlib.Path("fields.json").write_text('{"length": 3}')
    pathlib.Path("damaged").mkdir()
    pathlib.Path("damaged", "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    np.save("images.npy", RAW[:8])
    np.save("labels.npy", LABELS[:12])
    words = [str(saved), "--images", "pictures", "--output", "out", *options.split()]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not pathlib.Path("out").exists()


def test_models_that_do_not_fit_are_said_before_anything_is_read(tmp_path, capsys):
    keras.config.set_image_data_format("channels_first")
    make_model(input_shape=(3, 16, 16)).save(tmp_path / "first.keras")
    unknown = keras.Sequential([keras.Input((16, 16, 3)), Unregistered()])
    unknown.save(tmp_path / "unknown.keras")
    for name, message in (
        ("first", "Received: 'channels_first' in layer 'stem_"),
        ("unknown", "The model cannot be read."),
    ):
        words = f"{tmp_path}/{name}.keras --images {tmp_path} --output {tmp_path}/out"
        assert main(words.split()) == 2
        assert message in capsys.readouterr().err


class Unregistered(keras.layers.Layer):
    """A layer that Keras does not find when it loads."""

    def call(self, inputs):
        return inputs


# python -m training export


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    recipe = dataclasses.replace(get_recipe("digits-resnet20"), variant="cifar_resnet8")
    loop.train(recipe, run_dir=path, steps=2, verbose=0)
    return path


def training_export(run_dir, output, *options):
    words = ["export", str(run_dir), "--output", str(output), "--images", "8", *options]
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def test_a_run_gives_its_class_names_and_calibration_images(run_dir, tmp_path):
    result = training_export(
        run_dir, tmp_path, "--include-preprocessing", "--formats", "tflite_int8"
    )
    assert result.exit_code == 0, result.output
    runtime = importlib.import_module("keras_resnet.export.runtime")
    assert runtime.read_labels(tmp_path / "model_int8.tflite") == list("0123456789")
    assert export.load_tflite(tmp_path / "model_int8.tflite")(
        np.zeros((1, 8, 8, 1), "uint8")
    ).shape == (1, 10)
    assert read_record(tmp_path)["run"]["recipe"]["variant"] == "cifar_resnet8"


def test_an_export_of_a_run_that_disagrees_ends_with_code_1(run_dir, tmp_path, monkeypatch):
    def wrongly_folded(original):
        folded = keras_resnet.surgery.fold_batch_norm(original)
        bias = folded.get_layer("predictions").bias
        bias.assign(bias + np.arange(10))
        return folded

    monkeypatch.setattr(tflite_module, "fold_batch_norm", wrongly_folded)
    result = training_export(run_dir, tmp_path, "--formats", "saved_model,tflite")
    assert result.exit_code == 1
    assert "Exports, compared on 8 test images" in result.stdout
    assert "tflite: The tflite export disagrees with the Keras model." in result.stderr
    assert names(tmp_path) == ["record.json", "saved_model"]
