"""The search for better values: what is tried, what is trained, what is kept, what a kill costs."""

import csv
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from training import __main__ as command_line
from training import datasets, journal, loop, pipeline, tune
from training.interruption import Interrupted
from training.recipes import get_recipe
from training.space import parse_field, with_values
from training.strategy import make_strategy
from training.trials import Trainer

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
AVERAGED = dataclasses.replace(
    get_recipe("digits-resnet20"), variant="cifar_resnet8", batch_size=64, ema_momentum=0.5
)
TINY = dataclasses.replace(AVERAGED, ema_momentum=None, augmentation={})  # sooner traced
RATE = "learning_rate=0.01:1.0:log"

# keras-tuner 1.4.8 with Python 3.10 and later
pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]


def search(folder, *texts, recipe=TINY, **options):
    fields = [parse_field(text) for text in texts]
    return tune.search(recipe, fields=fields, output=folder, verbose=0, **{"steps": 3, **options})


class NotToBeRead:
    """A test split that counts its images and gives none away."""

    num_examples = 360

    def __getattr__(self, name):
        raise AssertionError(f"the test split was asked for its {name}")


@pytest.fixture
def scored(monkeypatch):
    """Trials without a training: their score is highest at a learning rate of 0.1."""
    executed = []

    def execute(self, values, share, seed, after_step):
        executed.append((values, share, seed))
        accuracy = 0.9 - 0.1 * abs(math.log10(values.get("learning_rate", 0.1) / 0.1))
        return {"steps": 3, "accuracy": accuracy + 0.01 * seed, "seconds": 1.0, "note": ""}

    monkeypatch.setattr(Trainer, "execute", execute)
    return executed


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search on two replicas, with a test split that is not to be read."""
    folder = tmp_path_factory.mktemp("search") / "tiny"
    digits = datasets.load("digits")
    guarded = dataclasses.replace(digits, splits={**digits.splits, "test": NotToBeRead()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda *_, **__: guarded)
        trials = search(
            folder,
            "variant=cifar_resnet8,cifar_resnet14",
            "learning_rate=0.005:0.05:log",
            "augmentation.shift.padding=0:2",
            recipe=AVERAGED,
            trials=2,
            replicas=2,
        )
    return folder, trials


def test_a_search_tries_values_of_its_space_only(found):
    _, trials = found
    assert len(trials) == 2
    for trial in trials:
        assert trial.values["variant"] in ("cifar_resnet8", "cifar_resnet14")
        assert 0.005 <= trial.values["learning_rate"] <= 0.05
        assert trial.values["augmentation.shift.padding"] in (0, 1, 2)
        assert (trial.steps, trial.note) == (3, "")
    assert trials[0].values != trials[1].values
    assert trials[0].accuracy >= trials[1].accuracy


def test_a_trial_scores_what_train_reaches_with_the_same_values(found, tmp_path):
    _, trials = found
    best = trials[0]
    record = loop.train(
        AVERAGED.changed(best.values), run_dir=tmp_path / "run", steps=3, replicas=2, verbose=0
    )
    assert best.accuracy == pytest.approx(record.results["validation_accuracy"], abs=1e-6)


def test_the_best_recipe_differs_in_the_searched_fields_only(found):
    folder, trials = found
    recipe = get_recipe(str(folder / "best_recipe.json"))
    values = trials[0].values
    assert recipe.name == "digits-resnet20-tuned"
    assert recipe.variant == values["variant"]
    assert recipe.learning_rate == values["learning_rate"]
    assert recipe.augmentation == {"shift": {"padding": values["augmentation.shift.padding"]}}
    assert (recipe.steps, recipe.milestones) == (500, (250, 375))
    assert recipe.measured_accuracy is None
    others = ("name", "variant", "learning_rate", "augmentation", "reference", "measured_accuracy")
    changed = {name: getattr(AVERAGED, name) for name in others}
    assert dataclasses.replace(recipe, **changed) == AVERAGED


def test_trials_are_listed_and_drawn(found):
    folder, trials = found
    with open(folder / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [1, 2]
    for trial in trials:
        row = rows[trial.number - 1]
        assert row["variant"] == trial.values["variant"]
        assert float(row["learning_rate"]) == trial.values["learning_rate"]
        assert float(row["accuracy"]) == trial.accuracy
        assert float(row["seconds"]) > 0
    width, height = Image.open(folder / "trials.png").size
    assert width > 1000
    assert height > 300


def test_a_search_that_has_ended_trains_nothing_again(found, monkeypatch):
    folder, trials = found
    monkeypatch.setattr(Trainer, "execute", None)
    texts = json.loads((folder / "search.json").read_text())["settings"]["field"]
    assert search(folder, *texts, recipe=AVERAGED, trials=2, replicas=2) == trials


def test_a_search_goes_further_with_more_trials(scored, tmp_path):
    whole = search(tmp_path / "whole", RATE, trials=5)
    del scored[:]
    search(tmp_path / "parts", RATE, trials=3)
    assert search(tmp_path / "parts", RATE, trials=5) == whole
    assert len(scored) == 5
    assert len({values["learning_rate"] for values, *_ in scored}) == 5


def test_executions_are_averaged_and_have_seeds_of_their_own(scored, tmp_path):
    (trial,) = search(tmp_path, RATE, trials=1, executions=3, seed=7)
    assert [seed for *_, seed in scored] == [7, 8, 9]
    assert trial.accuracy == pytest.approx(np.mean(trial.accuracies))
    assert trial.spread == pytest.approx(np.std(trial.accuracies, ddof=1))
    assert trial.spread == pytest.approx(0.01)


def test_seeds_that_are_neighbours_try_other_values(scored, tmp_path):
    rates = []
    for seed in (0, 1, 2):
        trials = search(tmp_path / str(seed), RATE, trials=4, seed=seed)
        rates += [trial.values["learning_rate"] for trial in trials]
    assert len(set(rates)) == 12


def test_a_bayesian_search_that_was_stopped_ends_as_if_it_had_not(scored, tmp_path, monkeypatch):
    """After three random trials the model of the scores leads to where they are high."""
    options = {"method": "bayesian", "trials": 5}
    whole = search(tmp_path / "whole", RATE, **options)
    random = search(tmp_path / "random", RATE, trials=5)
    numbered = {trial.number: trial.values["learning_rate"] for trial in whole}
    assert [numbered[n] for n in (1, 2, 3)] == [
        trial.values["learning_rate"] for trial in sorted(random, key=lambda trial: trial.number)
    ][:3]
    assert whole[0].number > 3
    assert all(type(value) is float for value in numbered.values())

    execute = Trainer.execute

    def stopped(self, values, share, seed, after_step):
        if len(scored) == 4:
            raise KeyboardInterrupt
        return execute(self, values, share, seed, after_step)

    del scored[:]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "execute", stopped)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "stopped", RATE, **options)
    assert search(tmp_path / "stopped", RATE, **options) == whole
    assert len(scored) == 5


def test_hyperband_has_the_brackets_of_its_authors(scored, tmp_path):
    """Li et al. 2018, algorithm 1: for R = 9 and eta = 3 brackets of 9, 5 and 3 configurations."""
    trials = search(tmp_path, RATE, method="hyperband", steps=None, epochs=9)
    by_number = sorted(trials, key=lambda trial: trial.number)
    shares = [round(9 * share) for _, share, _ in scored]
    assert shares[:9] == [1] * 9
    assert shares[9:12] == [3] * 3
    assert shares[12:18] == [9] + [3] * 5
    assert shares[18:] == [9] * 5
    first = [trial.values["learning_rate"] for trial in by_number[:9]]
    second = [trial.values["learning_rate"] for trial in by_number[9:12]]
    nearest = sorted(first, key=lambda rate: abs(math.log10(rate / 0.1)))[:3]
    assert sorted(second) == sorted(nearest)


def test_a_trial_is_the_whole_recipe_in_fewer_steps():
    digits = datasets.load("digits")
    recipe = dataclasses.replace(TINY, warmup_steps=50)
    trainer = Trainer(recipe, digits, make_strategy(1), length=0.1, verbose=0)
    shortened, _, batches = trainer.prepare({"batch_size": 32}, share=0.5)
    assert (shortened.steps, shortened.milestones) == (50, (25, 38))
    assert shortened.warmup_steps == 5
    assert next(iter(batches))[0].shape == (32, 8, 8, 1)
    assert with_values(recipe, {"batch_size": 32}).steps == 2 * recipe.steps


def test_a_training_that_diverges_is_the_worst(tmp_path):
    best, worst = search(tmp_path, "learning_rate=0.02,1e30", trials=2)
    assert best.values["learning_rate"] == 0.02
    assert best.accuracy > 0
    assert (worst.accuracy, worst.note) == (0, "diverged")
    assert get_recipe(str(tmp_path / "best_recipe.json")).learning_rate == 0.02


def test_values_that_do_not_go_together_are_the_worst(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_fit", lambda *_: 0.5)
    trials = search(
        tmp_path,
        "options.shortcut=zero_padding,none",
        "options.survival_probability=0.5,1.0",
        trials=10,
    )
    assert [trial.accuracy for trial in trials] == [0.5, 0.5, 0.5, 0]
    assert trials[-1].values == {"options.shortcut": "none", "options.survival_probability": 0.5}
    assert trials[-1].note.startswith("A plain network has no way around")


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."),  # JAX
    ],
)
def test_values_that_need_too_much_memory_are_the_worst(tmp_path, monkeypatch, error):
    def fit(_, recipe, *__):
        if recipe.batch_size > 32:
            raise error
        return 0.5

    monkeypatch.setattr(Trainer, "_fit", fit)
    best, worst = search(tmp_path, "batch_size=32,64", trials=2)
    assert (best.values["batch_size"], best.accuracy) == (32, 0.5)
    assert (worst.accuracy, worst.note) == (0, str(error))


def test_a_search_without_a_single_training_says_so(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("diverged")

    monkeypatch.setattr(Trainer, "_fit", fail)
    with pytest.raises(ValueError, match="No trial") as error:
        search(tmp_path, RATE, trials=2)
    assert str(error.value) == (
        "No trial could be trained. Expected values that work together. Received: diverged. "
        "Search in other ranges."
    )
    assert not (tmp_path / "best_recipe.json").exists()
    assert (tmp_path / "trials.csv").exists()


def test_an_error_that_is_no_mistake_of_the_values_ends_the_search(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Trainer, "_fit", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        search(tmp_path, RATE, trials=2)


def test_another_search_in_the_directory_is_refused(scored, tmp_path):
    search(tmp_path, RATE, trials=1)
    for texts, options, difference in (
        ([RATE], {"seed": 1}, "Expected seed=0. Received: seed=1."),
        ([RATE], {"steps": 4}, "Expected trial_steps=3. Received: trial_steps=4."),
        (
            ["learning_rate=0.01:0.5:log"],
            {},
            "Expected field=['learning_rate=0.01:1.0:log']. Received: "
            "field=['learning_rate=0.01:0.5:log'].",
        ),
        ([RATE], {"recipe": TINY.changed({"momentum": 0.5})}, "Expected momentum=0.9. "),
    ):
        with pytest.raises(ValueError, match="holds another search") as error:
            search(tmp_path, *texts, trials=1, **options)
        assert difference in str(error.value)
    assert len(scored) == 1
    book = tmp_path / "search.json"
    book.write_text(book.read_text().replace('"backend": "tensorflow"', '"backend": "jax"'))
    with pytest.raises(ValueError, match=r"Expected backend='jax'\. Received: backend='tensorfl"):
        search(tmp_path, RATE, trials=1)
    search(tmp_path, RATE, trials=1, seed=1, overwrite=True)
    assert scored[-1][-1] == 1


def test_a_directory_with_other_things_is_refused(scored, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds something else than a search"):
            search(tmp_path, RATE, trials=1, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["", '{"settings": {}, "exec', "[]", "{}"])
def test_a_damaged_search_is_not_continued(scored, tmp_path, content):
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be continued") as error:
        search(tmp_path, RATE, trials=1)
    assert "Start anew with --overwrite" in str(error.value)


def test_two_processes_do_not_share_a_search(tmp_path):
    with (
        journal.opened(tmp_path, {}),
        pytest.raises(ValueError, match="Another process works on this search"),
        journal.opened(tmp_path, {}),
    ):
        pass


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["learning_rat=0.1:1"], {}, "Did you mean 'learning_rate'?"),
        (["options=a,b"], {}, "Did you mean 'options.OPTION'?"),
        (["options.shortcutt=none,projection"], {}, "Did you mean 'shortcut'?"),
        (["augmentation.shft.padding=1:2"], {"recipe": AVERAGED}, "Did you mean 'shift'?"),
        (["augmentation.shift.paddin=1:2"], {"recipe": AVERAGED}, "Did you mean 'padding'?"),
        (["variant=cifar_resnet8,cifar_resnet9"], {}, "Received: 9. The nearest are 8 and 14."),
        (["steps=1:10"], {}, "Unknown field of a search."),
        (["milestones=1:10"], {}, "Unknown field of a search."),
        (["validation_examples=100:200"], {}, "Unknown field of a search."),
        (["momentum=0.5:1.0"], {}, "Expected 0 <= `momentum` < 1. Received: momentum=1.0."),
        (["batch_size=16.5:20.5"], {}, "Expected `batch_size` as int. Received: 16.5."),
        (["nesterov=true,3"], {}, "Expected `nesterov` as bool. Received: 3."),
        (["options.zero_init_residual=1,2"], {}, "`options.zero_init_residual` as bool"),
        (["preprocessing.resize_size=fast,9"], {}, "as int | None. Received: 'fast'."),
        (["batch_size=31,32"], {"replicas": 2}, "Received: batch_size=31. Use 30 or 32."),
        ([RATE, RATE], {}, "A field is given twice."),
        ([RATE], {"method": "bayes"}, "Did you mean 'bayesian'?"),
        ([RATE], {"method": "bayesian", "trials": 3}, "Expected `trials` > 3 for 1 fields."),
        ([RATE], {"method": "hyperband"}, "Received: epochs=25, steps=3."),
        ([RATE], {"method": "hyperband", "steps": None, "epochs": 2}, "`epochs` >= 3"),
        (
            ["nesterov=true,false"],
            {"method": "hyperband", "steps": None, "epochs": 9},
            "Expected more trials, or fields with more values. Received: 2 trials.",
        ),
        ([RATE], {"epochs": 1}, "The length of a run is given twice."),
        ([RATE], {"trials": 0}, "Received: trials=0, executions=1."),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(scored, tmp_path, texts, options, message):
    with pytest.raises(ValueError) as error:
        search(tmp_path / "search", *texts, **options)
    assert message in str(error.value)
    assert not scored
    assert not (tmp_path / "search").exists()


def command(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=cwd,
        env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(path):
    """Executions in a journal that may not be there yet."""
    return len(json.loads(path.read_text())["executions"]) if path.exists() else 0


def test_a_mistake_on_the_command_line_ends_in_one_message(monkeypatch, capsys):
    arguments = ["tune", "digits-resnet20", "--field", "momentum=0.9:0.1"]
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "Error: The search has nothing to choose from for 'momentum'. Expected LOW < HIGH. "
        "Received: 0.9:0.1."
    )


def test_other_images_and_other_values_from_the_command_line(scored, tmp_path, monkeypatch, capsys):
    arguments = ["tune", "cifar10-resnet20", "--dataset", "digits", "--set", "momentum=0.8"]
    arguments += ["--set", "nesterov=False", "--set", "freeze=None", "--set", "milestones=(1, 2)"]
    arguments += ["--field", RATE, "--trials", "2", "--steps", "2", "--output", str(tmp_path / "a")]
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 0
    best = get_recipe(str(tmp_path / "a" / "best_recipe.json"))
    assert (best.dataset, best.validation_examples, best.momentum) == ("digits", None, 0.8)
    assert (best.nesterov, best.freeze, best.milestones) == (False, None, (1, 2))
    assert len(scored) == 2
    assert f"train {tmp_path}/a/best_recipe.json" in "".join(capsys.readouterr().out.split("\n"))


def test_damaged_images_are_left_out_if_asked_for(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "prepare", lambda *_: None)  # builds a network
    for split in ("train", "validation", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "insects" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "whole.png")
    damaged = tmp_path / "insects" / "train" / "bee" / "empty.png"
    damaged.touch()

    def tune_with(*options):
        arguments = ["tune", "digits-resnet20", "--dataset", f"folder:{tmp_path}/insects"]
        arguments += ["--trials", "1", "--steps", "1", "--output", str(tmp_path / "search")]
        monkeypatch.setattr(sys, "argv", ["training", *arguments, *options])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        return end.value.code, capsys.readouterr().err

    code, error = tune_with()
    assert code == 2
    assert "Received: 'train/bee/empty.png' in" in error
    assert "`train` and `tune` leave them out with --skip-corrupt." in error
    code, error = tune_with("--skip-corrupt")
    assert code == 0, error
    assert len(scored) == 1
    damaged.unlink()
    code, error = tune_with("--skip-corrupt")
    assert code == 2
    assert "Expected skipped=['train/bee/empty.png']. Received: skipped=[]." in error
    shutil.copy(damaged.with_name("whole.png"), damaged)
    code, error = tune_with("--skip-corrupt")
    assert code == 2
    assert "Expected images={'train': 2, 'validation': 2}, skipped=" in error


def test_a_signal_while_a_function_is_traced_stops_the_search_after_the_step(tmp_path, monkeypatch):
    """AutoGraph turns errors of its own functions into a `StagingError`."""
    training_batches = pipeline.training_batches

    def interrupted(images, labels):
        os.kill(os.getpid(), signal.SIGTERM)
        return images, labels

    def batches(*arguments, **keywords):
        made = training_batches(*arguments, **keywords)
        has_begun = (tmp_path / "search.json").exists()
        return made.map(interrupted) if has_begun else made

    monkeypatch.setattr(pipeline, "training_batches", batches)
    with pytest.raises(Interrupted) as stop:
        search(tmp_path, RATE, trials=1)
    assert stop.value.exit_code == 143
    assert ended(tmp_path / "search.json") == 0


@pytest.mark.slow
def test_a_search_that_is_killed_twice_ends_as_if_it_had_not(tmp_path):
    tuning = ("tune", "digits-resnet20", "--trials", "3", "--executions", "2", "--steps", "3")
    tuning += ("--field", "variant=cifar_resnet8,cifar_resnet14", "--field", RATE)
    path = tmp_path / "disturbed" / "search.json"
    kept = []
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 128 + signal.SIGTERM)):
        process = command(*tuning, "--output", "disturbed", cwd=tmp_path)
        done = ended(path)
        while process.poll() is None and ended(path) == done:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == status, errors
        kept.append(json.loads(path.read_text())["executions"])
    assert f"python -m training {' '.join(tuning)} --output disturbed" in " ".join(output.split())
    rows = []
    for name in ("disturbed", "undisturbed"):
        process = command(*tuning, "--output", name, cwd=tmp_path)
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        with open(tmp_path / name / "trials.csv") as file:
            rows.append([row | {"seconds": ""} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    executions = json.loads(path.read_text())["executions"]
    assert len(executions) == 6
    for before in kept:  # nothing that had ended was done again
        assert executions[: len(before)] == before
    accuracies = sorted((float(row["accuracy"]) for row in rows[0]), reverse=True)
    shown = [output.rindex(f"{accuracy:.2%}") for accuracy in accuracies]
    assert shown == sorted(shown)
    assert "python -m training train undisturbed/best_recipe.json" in output

    process = command(
        "train", "undisturbed/best_recipe.json", "--steps", "2", "--run-dir", "run", cwd=tmp_path
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["recipe"]["name"] == "digits-resnet20-tuned"


@pytest.mark.slow
def test_hyperband_trains_for_shares_of_its_epochs(tmp_path):
    recipe = dataclasses.replace(TINY, batch_size=431)
    trials = search(tmp_path, RATE, recipe=recipe, method="hyperband", steps=None, epochs=3)
    assert sorted(trial.steps for trial in trials) == [3, 3, 3, 9, 9, 9]
    assert get_recipe(str(tmp_path / "best_recipe.json")).steps == 500
