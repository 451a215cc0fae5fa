"""`python -m training`, as a user types it."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet.export import ExportMismatch, ExportsFailed
from training import __main__ as command_line
from training import demo, evaluate, exports, files, loop, records, tables
from training.commands import console
from training.recipes import get_recipe

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


def training(*arguments, cwd):
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "COLUMNS": "200",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def training_here(monkeypatch, capsys):
    """The same in this process, which has TensorFlow already: for commands that do not train."""

    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(console, "width", 200)
        monkeypatch.setattr(sys, "argv", ["training", *arguments])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, output.out, output.err)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on two replicas in the default directory, and what it printed."""
    folder = tmp_path_factory.mktemp("user")
    answer = training(
        "train", "digits-resnet20", "--epochs", "2", "--replicas", "2", "--seed", "7", cwd=folder
    )
    assert answer.returncode == 0, answer.stderr
    return folder, answer


def test_help_names_every_command():
    answer = training("--help", cwd=CHECKOUT)
    assert answer.returncode == 0
    commands = "train launch tune evaluate export publish list demo benchmark"
    for command in commands.split():
        assert f" {command} " in answer.stdout


def test_help_needs_no_tensorflow():
    program = (
        "import sys, training.__main__ as main\n"
        "sys.argv = ['training', 'train', '--help']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    assert "JSON file" in answer.stdout  # of a recipe


@pytest.mark.slow
def test_a_recipe_is_changed_on_the_command_line(tmp_path):
    options = "--steps 2 --batch-size 64 --scale-learning-rate --accumulation-steps 2 --no-xla"
    changes = ("learning_rate=0.2", "options.shortcut=projection", "schedule=cosine")
    answer = training(
        *("train", "digits-resnet20", *options.split()),
        *(word for change in changes for word in ("--set", change)),
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stderr
    record = json.loads((tmp_path / "runs/digits-resnet20-seed0/record.json").read_text())
    recipe = record["recipe"]
    assert (recipe["learning_rate"], recipe["schedule"]) == (0.1, "cosine")
    assert (recipe["options"], recipe["batch_size"]) == ({"shortcut": "projection"}, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "learning_rate"), "Expected --set FIELD=VALUE"),
        (("--set", "lerning_rate=1"), "Did you mean 'learning_rate'?"),
        (("--set", "nesterov=no"), "Expected `nesterov` as bool. Received: 'no'."),
        (("--set", "learning_rate=None"), "Expected `learning_rate` as float. Received: None."),
        (("--set", "options.shortcutt=none"), "Did you mean 'shortcut'?"),
        (("--batch-size", "9", "--accumulation-steps", "2"), "Use 8 or 10."),
    ],
)
def test_changes_that_do_not_fit_are_errors(training_here, arguments, message, tmp_path):
    answer = training_here("train", "digits-resnet20", *arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_list_shows_networks_and_recipes(training_here):
    answer = training_here("list", cwd=CHECKOUT)
    assert answer.returncode == 0, answer.stderr
    for name in ("resnet152", "cifar_plainnet56", "cifar10-resnet110", "32,000, 48,000"):
        assert name in answer.stdout


def test_list_counts_what_the_paper_counts(training_here):
    """Parameters of the paper's table 6, to the digit, and the multiply-adds of option A."""
    answer = training_here("list", "*resnet20", "--count", cwd=CHECKOUT)
    assert answer.returncode == 0, answer.stderr
    assert "269,722" in answer.stdout
    assert "40,551,040" in answer.stdout
    assert "cifar10-resnet20" in answer.stdout
    assert "resnet32" not in answer.stdout


def test_training_prints_its_results_and_what_to_do_next(trained):
    folder, answer = trained
    output = answer.stdout
    assert "no XLA, because oneDNN trains faster, on 2 replica(s), CPU" in answer.stderr
    run = folder / "runs" / "digits-resnet20-seed7"
    record = json.loads((run / "record.json").read_text())
    assert (record["seed"], record["replicas"], record["recipe"]["steps"]) == (7, 2, 20)
    assert f"{record['results']['test']['top1']:.2%}" in output
    assert "python -m training evaluate runs/digits-resnet20-seed7" in output
    assert (
        "python -m training export runs/digits-resnet20-seed7 "
        "--output saved_models/digits-resnet20-seed7"
    ) in output
    assert Image.open(run / "curves.png").width > 1000


def test_names_of_any_kind_are_printed_as_they_are(trained, training_here, monkeypatch, capsys):
    """A path can be typed again, and no part of a name is taken for a style."""
    folder, _ = trained
    record = records.read(folder / "runs" / "digits-resnet20-seed7")
    monkeypatch.setattr(loop, "train", lambda *_, **__: record)
    answer = training_here("train", record.recipe.name, "--run-dir", "my [bold] :dog:", cwd=folder)
    assert "Curves: my [bold] :dog:/curves.png." in answer.stdout
    assert "  python -m training evaluate 'my [bold] :dog:'\n" in answer.stdout
    assert "export 'my [bold] :dog:' --output 'saved_models/my [bold] :dog:'\n" in answer.stdout
    names = ("dog [red]", ":cat:")
    console.print(tables.evaluation(evaluate.score(np.eye(2), [0, 1]), names, "[b] :dog:"))
    table = capsys.readouterr().out
    assert all(name in table for name in (*names, "[b] :dog:"))


def test_evaluate_repeats_the_score(trained, training_here):
    folder, _ = trained
    run = folder / "runs" / "digits-resnet20-seed7"
    answer = training_here("evaluate", "runs/digits-resnet20-seed7", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    top1 = json.loads((run / "record.json").read_text())["results"]["test"]["top1"]
    assert f"{top1:.2%}" in answer.stdout
    output = run / "record.json" / "mistakes"
    answer = training_here("evaluate", str(run), "--output", str(output), cwd=folder)
    assert answer.returncode == 2
    assert answer.stderr.startswith("Error: A file cannot be written.")
    assert f"{top1:.2%}" in answer.stdout


def test_export_proves_every_file(trained, training_here):
    folder, _ = trained
    answer = training_here(
        "export", "runs/digits-resnet20-seed7", "--output", "saved_models/digits", cwd=folder
    )
    assert answer.returncode == 0, answer.stderr
    output = folder / "saved_models" / "digits"
    assert {path.name for path in output.iterdir()} == {
        "model.tflite",
        "model_int8.tflite",
        "record.json",
        "saved_model",
    }
    record = json.loads((output / "record.json").read_text())
    formats = [export["format"] for export in record["exports"]]
    assert formats == ["saved_model", "tflite", "tflite_int8"]
    for export in record["exports"]:
        assert export["format"] in answer.stdout
        assert export["examples"] == 360
    exact = [export for export in record["exports"] if export["format"] != "tflite_int8"]
    assert all(export["top1_agreement"] == 1.0 for export in exact)
    assert record["run"]["seed"] == 7


def test_formats_may_stand_apart(training_here, monkeypatch, tmp_path):
    asked = []

    def export_run(*_, formats, **__):
        asked.extend(formats)
        raise ValueError("enough")

    monkeypatch.setattr(exports, "export_run", export_run)
    training_here("export", "run", "--output", "o", "--formats", "tflite, onnx", cwd=tmp_path)
    assert asked == ["tflite", "onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "digits-resnet21"),
            "Did you mean 'digits-resnet20'?",
        ),
        (
            ("train", "digits-resnet20", "--replicas", "2", "--batch-size", "63"),
            "Error: 2 replicas cannot share the batch evenly. Expected a batch size that is a "
            "multiple of 2. Received: batch_size=63. Use 62 or 64.",
        ),
        (
            ("evaluate", "runs/nothing"),
            "Error: There is no run. Expected a directory with a record.json, as `train` makes "
            "it. Received: 'runs/nothing'",
        ),
        (("list", "ResNet34"), "Received: 'ResNet34'. Did you mean 'resnet34'?"),
    ],
    ids=["recipe", "replicas", "run", "list"],
)
def test_mistakes_end_in_one_message(training_here, tmp_path, arguments, message):
    answer = training_here(*arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.strip().endswith(message)
    assert "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["export", "publish"])
def test_nothing_is_compared_on_no_images(training_here, command, tmp_path):
    answer = training_here(command, "run", "--output", "file", "--images", "0", cwd=tmp_path)
    assert answer.returncode == 2
    assert "greater than or equal to 1" in answer.stderr


def test_a_second_run_does_not_replace_the_first(trained, training_here):
    folder, _ = trained
    answer = training_here("train", "digits-resnet20", "--steps", "1", "--seed", "7", cwd=folder)
    assert answer.returncode == 2
    assert "The run directory already holds another run." in answer.stderr


def test_the_demo_says_at_once_that_it_needs_tensorflow(training_here, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    answer = training_here("demo", cwd=tmp_path)
    assert answer.returncode == 2
    assert "Received: 'jax'. Set KERAS_BACKEND=tensorflow" in " ".join(answer.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_demo_fails_with_any_of_its_exports(training_here, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise ExportsFailed([], {"tflite": ExportMismatch("It disagrees.")})

    monkeypatch.setattr(loop, "train", lambda *_, **__: None)
    monkeypatch.setattr(exports, "export_run", refuse)
    answer = training_here("demo", cwd=tmp_path)
    assert answer.returncode == 2
    assert "tflite: It disagrees." in answer.stderr


def test_a_demo_that_still_runs_is_not_replaced(training_here, tmp_path):
    run_dir = tmp_path / "runs" / "demo"
    recipe = get_recipe(demo.RECIPE)
    with files.locked(run_dir, what="run", option="--run-dir"):
        records.write(run_dir, records.new_record(recipe, seed=0, replicas=2, data={}))
        answer = training_here("demo", cwd=tmp_path)
        assert records.read(run_dir).recipe == recipe
    assert answer.returncode == 2
    assert "Another process works on this demo." in answer.stderr


@pytest.mark.slow
def test_the_demo_runs_twice(tmp_path):
    for _ in range(2):
        answer = training("demo", cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
    output = tmp_path / "saved_models" / "demo"
    for picture in ("curves.png", "predictions.png"):
        assert Image.open(output / picture).width > 1000
    record = json.loads((output / "record.json").read_text())
    assert record["run"]["results"]["test"]["top1"] >= 0.98
