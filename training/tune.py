"""A search for better values of a recipe's fields: `python -m training tune --help`.

keras-tuner decides what is tried next; here it is trained, and what came of it is kept.

keras-tuner's own way to go on after a kill is not used. It repeats all executions of the trial that
was lost, a Bayesian search then proposes other values than one that was left alone, and a file
that was being written can no longer be read. Here every execution that has ended stands in a
`training.journal`. A search that goes on asks keras-tuner from the start, with the same seed, and
answers from the journal as far as it reaches: a kill costs the execution that it has met, and
changes nothing else.
"""

import csv
import dataclasses
import os
import pathlib
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.engine.base_tuner import BaseTuner
from threadpoolctl import threadpool_limits

from keras_resnet.errors import unknown_name
from training import datasets, files, journal, plots
from training.interruption import Interrupted, Signals
from training.journal import Trial, ranked
from training.loop import check_complete, describe, fit_to_data, steps_per_epoch
from training.recipe import Recipe
from training.recipes import write_recipe
from training.space import Field, check_fields, default_fields, with_values
from training.strategy import make_strategy
from training.trials import Trainer

METHODS = ("random", "bayesian", "hyperband")
FACTOR = 3  # of Hyperband: the best third of the trials is tried again, three times as long


def search(
    recipe: Recipe,
    *,
    method: str = "random",
    fields: Sequence[Field] = (),
    trials: int | None = None,
    executions: int = 1,
    steps: int | None = None,
    epochs: int | None = None,
    output: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    replicas: int | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
    overwrite: bool = False,
    verbose: int | None = None,
) -> list[Trial]:
    """Trains a recipe with many values of its fields, and keeps the best ones as a recipe.

    A trial is the recipe with other values, shortened with its whole schedule, and is scored on
    the validation split; the test split is not looked at. The directory holds `search.json`,
    `trials.csv`, `best_recipe.json`, which is as long as the recipe again, and in the end
    `trials.png`. The same call goes on with a search that was stopped; with more trials it goes
    further.

    The trials that Hyperband picks are trained from the start, with the schedule of their new
    length. To continue them, as keras-tuner does, saves a third of the steps at most, and scores
    trainings in the middle of their schedule.

    Args:
        recipe: The recipe.
        method: `"random"`; `"bayesian"`, which after three random trials per field follows a model
            of the scores; or `"hyperband"`: many short trials, of which the best third is tried
            again three times as long, and so on.
        fields: What is searched. Default: `default_fields`.
        trials: Number of trials at most. Default: 10, or as many as Hyperband wants.
        executions: How often each trial is trained, with seeds from `seed` on.
        steps: Length of a trial. Default: the recipe's.
        epochs: The same in passes over the training split; the longest of Hyperband's trials.
        output: New or empty directory, or the one of this search. Default: `default_output`.
        data_dir: Where the images are, see `datasets.load`.
        replicas: Number of devices, see `make_strategy`.
        seed: Seed of the proposals, and of the first execution of every trial.
        skip_corrupt: Whether damaged files are left out, instead of being an error.
        overwrite: Whether the search in the directory is thrown away.
        verbose: 0 (one line per trial) or 1 (progress bars too). Default: 1 on a terminal.

    Returns:
        The trials, best first.

    Raises:
        ValueError: If anything does not fit together; before the directory is made. Or if no trial
            can be trained.
        Interrupted: On SIGTERM and Ctrl-C.

    Reference: Li et al. 2018, "Hyperband", algorithm 1; Snoek et al. 2012, "Practical Bayesian
    optimization of machine learning algorithms".
    """
    if method not in METHODS:
        raise unknown_name("search method", method, METHODS)
    fields = list(fields) or default_fields(recipe)
    check_fields(fields, recipe)
    strategy = make_strategy(replicas)
    dataset = _load_without_test(recipe, data_dir=data_dir, skip_corrupt=skip_corrupt)
    whole = _epochs_to_divide(recipe, dataset, steps, epochs) if method == "hyperband" else None
    trials = 10 if trials is None and not whole else trials
    _check_numbers(method, fields, trials, executions)
    trial_steps = fit_to_data(recipe, dataset, steps=steps, epochs=epochs).steps
    trainer = Trainer(
        recipe,
        dataset,
        strategy,
        length=trial_steps / recipe.steps,
        verbose=int(sys.stdout.isatty()) if verbose is None else verbose,
    )
    for field in fields:
        for value in field.extremes:
            trainer.prepare({field.name: value})

    def ask(answer):
        return _ask(_oracle(method, fields, trials=trials, epochs=whole, seed=seed), answer)

    if whole:
        _check_halving(ask, whole)
    settings = {
        **dataclasses.asdict(dataclasses.replace(recipe, reference="", measured_accuracy=None)),
        "search": method,
        "field": [str(field) for field in fields],
        "executions": executions,
        "trial_steps": trial_steps,
        "replicas": strategy.num_replicas_in_sync,
        "seed": seed,
        "backend": keras.backend.backend(),  # each draws other random numbers
        **describe(dataset, skip_corrupt),
    }
    folder = output or default_output(recipe, method, seed)
    # Each trial has a network of its own, which TensorFlow takes for needless retracing.
    tf.get_logger().setLevel("ERROR")
    with journal.opened(folder, settings, overwrite=overwrite) as book:
        seeds = range(seed, seed + executions)
        done = _conduct(ask, trainer, book, fields, seeds, whole)
        with files.replacing(book.folder / journal.PLOT) as path:
            logarithmic = [field.name for field in fields if field.is_log]
            plots.trials(done, path, logarithmic=logarithmic, title=f"{recipe.name}, {method}")
    best, *others = ranked(done)
    if best.note:
        raise ValueError(
            "No trial could be trained. Expected values that work together. Received: "
            f"{best.note.removesuffix('.')}. Search in other ranges."
        )
    return [best, *others]


def default_output(recipe: Recipe, method: str, seed: int) -> pathlib.Path:
    """`runs/<recipe>-<method>-seed<seed>`, below the working directory."""
    return pathlib.Path("runs") / f"{recipe.name}-{method}-seed{seed}"


def _conduct(ask, trainer, book, fields, seeds, whole):
    """Answers every proposal from the journal, or else by a training."""
    done = []
    with Signals() as signals:
        signals.waits = True  # raised while TensorFlow traces a function, it becomes another error

        def stop_if_told():
            if signals.received:
                raise Interrupted(signals.received)

        def answer(proposed):
            values = {field.name: field.value(proposed[field.name]) for field in fields}
            share = proposed["tuner/epochs"] / whole if whole else 1.0
            ended = []
            for seed in seeds:
                key = {"values": values, "share": share, "seed": seed}
                if not book.find(key):
                    book.add({**key, **trainer.execute(**key, after_step=stop_if_told)})
                ended.append(book.find(key))
                stop_if_told()
            done.append(Trial.of(len(done) + 1, ended))
            _publish(book.folder, trainer.recipe, done)
            return done[-1].accuracy

        ask(answer)
    return done


def _oracle(method, fields, *, trials, epochs, seed):
    """What of keras-tuner proposes values and is told their scores."""
    hyperparameters = keras_tuner.HyperParameters()
    for field in fields:
        field.declare(hyperparameters)
    common = {
        "objective": keras_tuner.Objective("val_accuracy", "max"),
        "hyperparameters": hyperparameters,
        # keras-tuner counts up from its seed, so that neighbours would try the same values, and
        # takes 0 for none.
        "seed": 1 + random.Random(seed).randrange(2**31),
    }
    if method == "hyperband":
        oracle = keras_tuner.oracles.HyperbandOracle(max_epochs=epochs, factor=FACTOR, **common)
        oracle.max_trials = trials
    elif method == "bayesian":
        oracle = keras_tuner.oracles.BayesianOptimizationOracle(max_trials=trials, **common)
    else:
        oracle = keras_tuner.oracles.RandomSearchOracle(max_trials=trials, **common)
    oracle.verbose = 0
    return oracle


def _ask(oracle, answer: Callable[[Mapping], float]) -> None:
    """Answers each proposal with its score, until there are no more.

    `BaseTuner.search` would take any error for a failed trial.
    """
    with tempfile.TemporaryDirectory() as folder:
        BaseTuner(oracle, directory=folder)  # gives the oracle a place for its files
        while True:
            with threadpool_limits(1):  # on these tiny matrices threads wait for each other
                trial = oracle.create_trial("tuner")
            if trial.status != "RUNNING":
                return
            score = answer(trial.hyperparameters.values)
            oracle.update_trial(trial.trial_id, {oracle.objective.name: score})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)


def _publish(folder, recipe, trials):
    """Says and writes what there is to be seen of the trials so far."""
    last, best = trials[-1], ranked(trials)[0]
    values = ", ".join(f"{name}={text}" for name, text in last.texts.items())
    print(f"Trial {last.number}: {last.note or f'{last.accuracy:.2%}'} with {values}", flush=True)
    with files.replacing(folder / journal.TRIALS) as path, open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", *best.values, "steps", "accuracy", "spread", "seconds", "note"])
        for trial in trials:
            results = [trial.steps, trial.accuracy, trial.spread, trial.seconds, trial.note]
            rows.writerow([trial.number, *trial.values.values(), *results])
    if best.note:
        return
    tuned = dataclasses.replace(
        with_values(recipe, best.values),
        name=f"{recipe.name}-tuned",
        reference=f"{recipe.name}, tuned: validation accuracy {best.accuracy:.2%} in "
        f"{best.steps:,} steps",
        measured_accuracy=None,
    )
    write_recipe(tuned, folder / journal.BEST)


def _load_without_test(recipe, **options):
    """Nobody can look at a test split that is not there."""
    dataset = datasets.load(
        recipe.dataset, validation_examples=recipe.validation_examples, **options
    )
    check_complete(dataset)
    splits = {name: split for name, split in dataset.splits.items() if name != "test"}
    return dataclasses.replace(dataset, splits=splits)


def _epochs_to_divide(recipe, dataset, steps, epochs):
    """The epochs of Hyperband's longest trials."""
    if epochs is None:
        epochs = round(recipe.steps / steps_per_epoch(recipe, dataset))
    if steps is not None or epochs < FACTOR:
        raise ValueError(
            f"Hyperband divides epochs. Expected `epochs` >= {FACTOR}, and no `steps`. Received: "
            f"epochs={epochs}, steps={steps}."
        )
    return epochs


def _check_numbers(method, fields, trials, executions):
    if executions < 1 or (trials is not None and trials < 1):
        raise ValueError(
            "A search without a training. Expected `trials` >= 1 and `executions` >= 1. Received: "
            f"trials={trials}, executions={executions}."
        )
    if method == "bayesian" and trials <= 3 * len(fields):
        raise ValueError(
            "A Bayesian search begins with three random trials per field. Expected `trials` > "
            f"{3 * len(fields)} for {len(fields)} fields. Received: trials={trials}. Choose "
            "the random search or fewer fields."
        )


def _check_halving(ask, epochs):
    """Plays Hyperband without training: keras-tuner gives up if it runs out of new values."""
    lengths = []

    def answer(proposed):
        lengths.append(proposed["tuner/epochs"])
        return 0.0

    ask(answer)
    if max(lengths) < epochs:
        raise ValueError(
            "Hyperband would end before any trial has its full length. Expected more trials, or "
            f"fields with more values. Received: {len(lengths)} trials. Choose the random search "
            "or fewer `epochs`."
        )
