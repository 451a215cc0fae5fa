"""The exported files run where there is no TensorFlow, no Keras and nothing of this package."""

import importlib
import os
import pathlib
import shutil
import subprocess
import venv

import exported
import numpy as np
import pytest
from exported import IMAGES, RAW

from keras_resnet import export

pytestmark = pytest.mark.parity  # of LiteRT; the fast tests have `test_export.py`

runtime = importlib.import_module("keras_resnet.export.runtime")

# What `pip install ai-edge-litert` would bring, as far as its interpreter imports it.
PACKAGES = ("ai_edge_litert", "numpy")


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    """A virtual environment of its own with two packages in it, and the runtime beside."""
    folder = tmp_path_factory.mktemp("phone")
    venv.create(folder / "env", symlinks=True)  # without pip: nothing is downloaded
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    for package in PACKAGES:
        installed = pathlib.Path(importlib.util.find_spec(package).origin).parent
        for path in (installed, installed.with_name(f"{package}.libs")):
            if path.exists():
                (site / path.name).symlink_to(path)
    shutil.copy(runtime.__file__, folder / "runtime.py")
    return folder


def run(phone, code, *arguments):
    """Runs code on the phone, with nothing of this machine's environment."""
    done = subprocess.run(
        [phone / "env" / "bin" / "python", "-c", code, *map(str, arguments)],
        cwd=phone,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_no_tensorflow_on_the_phone(phone):
    code = """
import importlib.util
print([name for name in ("tensorflow", "keras", "keras_resnet") if importlib.util.find_spec(name)])
"""
    assert run(phone, code).strip() == "[]"


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (IMAGES, {}),
        (IMAGES, {"quantization": "int8"}),
        (RAW, {"quantization": "int8", "include_preprocessing": True, "batch_size": None}),
    ],
    ids=["float32", "int8", "raw"],
)
def test_a_file_answers_on_the_phone_as_at_home(phone, tmp_path, images, options):
    model, path = exported.trained_model(), tmp_path / "m.tflite"
    export.tflite(
        model, path, representative_data=images, class_names=["cat", "dog", "owl"], **options
    )
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import numpy as np, runtime
answers = runtime.load_tflite(sys.argv[1])(np.load(sys.argv[2] + "/images.npy"))
np.save(sys.argv[2] + "/answers.npy", answers)
print(*runtime.read_labels(sys.argv[1]))
"""
    assert run(phone, code, path, tmp_path).split() == ["cat", "dog", "owl"]
    answers = np.load(tmp_path / "answers.npy")
    np.testing.assert_array_equal(answers, export.load_tflite(path)(images))
    expected = model.predict(IMAGES, verbose=0)
    assert np.mean(answers.argmax(axis=1) == expected.argmax(axis=1)) > 0.95
