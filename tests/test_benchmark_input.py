"""Benchmarks: they measure what they say, and compare like with like."""

import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from typer.testing import CliRunner

from benchmarks import input
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.variants import VARIANTS
from training.__main__ import app


def answer(*arguments):
    result = CliRunner().invoke(app, ["benchmark", "input", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_recipe_is_measured_alone_and_together():
    output = answer("digits-resnet20", "--batch-size", 32, "--steps", 2, "--rounds", 1)
    for row in ("digits-resnet20, batch 32", "pipeline alone", "step alone", "both together"):
        assert row in output
    assert "together, to the slower of the two: " in output
    assert "together, to 1/(1/pipeline + 1/step)" in output


def test_a_folder_is_compared_with_a_plain_pipeline(tmp_path):
    for number in range(4):
        path = tmp_path / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50 + number, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    output = answer("--folder", tmp_path, "--batch-size", 4, "--steps", 1, "--rounds", 1)
    assert "4 files" in output
    for row in ("plain, the same work", "files read each time", "files in memory", "pixels in"):
        assert row in output


def test_one_of_recipe_and_folder_is_needed():
    with pytest.raises(ValueError, match="nothing to measure, or too much"):
        CliRunner().invoke(app, ["benchmark", "input"], catch_exceptions=False)


def test_a_batch_of_no_images_is_refused(tmp_path):
    options = ["benchmark", "input", "--folder", str(tmp_path), "--batch-size", "0"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert "equal to 1" in result.output


def test_rates_are_images_per_second_of_each_turn(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    clock.perf_counter, clock.process_time = lambda: clock.now, lambda: clock.now / 4
    monkeypatch.setattr(input, "time", clock)
    lengths = iter([9.0, 9.0, 1.0, 2.0, 0.5, 4.0])  # the first round warms up

    def work():
        clock.now += next(lengths)

    rates, cores = input.alternate({"fast": work, "slow": work}, images=10, rounds=2)
    assert rates == {"fast": [10, 20], "slow": [5, 2.5]}
    assert cores == {"fast": [25, 12.5], "slow": [50, 100]}


def test_the_plain_pipeline_gives_what_ours_gives(tmp_path):
    path = tmp_path / "one.jpg"
    Image.new("RGB", (60, 50), (200, 100, 50)).save(path)
    colour = np.asarray(Image.open(path))[0, 0].astype("float32")
    preprocessing = Preprocessing()
    for given, expected in ((None, colour), (preprocessing, preprocessing.normalize(colour))):
        batch = next(iter(input.plain_batches([str(path)], 2, given)))
        assert batch.shape == (2, 224, 224, 3)
        assert batch.dtype == tf.float32
        np.testing.assert_allclose(batch[1, 100, 100], expected, atol=0.1 if given else 2)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("network", "written"),
    [
        ("resnet18", True),
        ("resnet152", True),
        ("cifar_resnet1202", True),
        ("cifar_plainnet20", False),
        ("cifar_resnet110v2", False),
        ("wide_resnet50_2", False),
        ("se_resnet50", False),
        ("resnet50d", False),
        ("highwaynet19", False),
        ("densenet40_12", False),
    ],
)
def test_only_networks_that_are_written_in_pytorch_are_compared_with_it(network, written):
    torch_twins = pytest.importorskip("benchmarks.torch_twins", reason="needs torch: make parity")
    assert torch_twins.has_twin(VARIANTS[network]) == written
