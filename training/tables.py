"""What the command line prints: results as tables."""

import fnmatch
import math
from collections.abc import Sequence

import keras
from rich import box
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet.export import ExportReport, table_rows
from training.evaluate import Evaluation
from training.journal import Trial
from training.plots import MANY_CLASSES
from training.recipes import RECIPES
from training.records import Record


def variants(pattern: str, *, counted: bool) -> Table:
    """The networks that can be built.

    Args:
        pattern: Shell-style pattern of the names.
        counted: Whether to build each one and count its parameters and multiply-adds.
    """
    table = Table(title="Networks")
    for heading in ("network", "blocks", "filters", "block", "shortcut", "input"):
        table.add_column(heading, no_wrap=True)
    if counted:
        table.add_column("parameters", justify="right")
        table.add_column("multiply-adds", justify="right")
    for name in keras_resnet.list_variants(pattern):
        variant = keras_resnet.VARIANTS[name]
        cells = [
            name,
            "-".join(map(str, variant.blocks)),
            "-".join(map(str, variant.filters)),
            variant.block,
            variant.shortcut,
            "x".join(map(str, variant.preprocessing.size)),
        ]
        if counted:
            with keras.StatelessScope(initialize_variables=False):  # the graph alone, no weights
                model = keras_resnet.build(name)
            keras.utils.clear_session(free_memory=False)
            trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
            cells += [f"{trainable:,}", f"{keras_resnet.count_macs(model):,}"]
        table.add_row(*cells)
    return table


def recipes(pattern: str) -> Table:
    """The recipes that can be followed.

    Args:
        pattern: Shell-style pattern of the names.
    """
    table = Table(
        title="Recipes",
        box=box.SIMPLE,
        pad_edge=False,
        caption="Each is followed by: python -m training train RECIPE\nIt costs its images times "
        "three times the multiply-adds of its network, forwards and backwards.",
    )
    names = fnmatch.filter(RECIPES, pattern)
    table.add_column("recipe", min_width=max(map(len, names), default=0))
    for heading in ("steps x batch", "images", "rate", "measured"):
        table.add_column(heading, justify="right")
    for recipe in map(RECIPES.get, names):
        about = f"{recipe.variant} on {recipe.dataset}. {recipe.reference}"
        if recipe.milestones:
            about += f". Rate divided at {_numbers(recipe.milestones)}"
        table.add_row(
            Text.assemble((recipe.name, "bold"), f"\n{about}"),
            f"{recipe.steps:,} x {recipe.batch_size}",
            f"{recipe.images / 1e6:.3g} M",
            f"{recipe.learning_rate:g}",
            "" if recipe.measured_accuracy is None else _percent(recipe.measured_accuracy),
        )
    return table


def results(record: Record) -> Table:
    """What a run reached.

    Args:
        record: The record of a finished run.
    """
    table = Table(title=f"{record.recipe.name}, seed {record.seed}", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    test, numbers = record.results["test"], record.results
    table.add_row("test accuracy", Text(_percent(test["top1"]), "bold"))
    if test["top5"] is not None:
        table.add_row("test top-5 accuracy", _percent(test["top5"]))
    table.add_row("test cross-entropy", f"{test['cross_entropy']:.4f}")
    table.add_row("test images", f"{test['count']:,}")
    table.add_row(
        f"validation accuracy, epoch {numbers['best_epoch']} of {numbers['epochs']}",
        _percent(numbers["validation_accuracy"]),
    )
    table.add_row("training accuracy, last epoch", _percent(numbers["train_accuracy"]))
    if record.data["skipped"]:
        table.add_row("damaged files left out", f"{len(record.data['skipped']):,}")
    table.add_row("steps of batch", f"{record.recipe.steps:,} x {record.recipe.batch_size}")
    table.add_row("replicas", str(record.replicas))
    table.add_row("seconds", f"{record.seconds:,.0f}")
    table.add_row("images per second", f"{record.images_per_second:,.0f}")
    return table


def evaluation(scores: Evaluation, class_names, title: str) -> Table:
    """What a model got right on a split, in all and by class.

    Args:
        scores: The evaluation.
        class_names: One name per class.
        title: What was evaluated on what.
    """
    table = Table("", "images", "accuracy", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    if len(class_names) <= MANY_CLASSES:
        for name, row, right in zip(class_names, scores.confusion, scores.confusion.diagonal()):
            images = row.sum()
            table.add_row(name, f"{images:,}", _percent(right / images) if images else "")
        table.add_section()
    table.add_row("all", f"{scores.count:,}", Text(_percent(scores.top1), "bold"))
    if scores.top5 is not None:
        table.add_row("all, top 5", f"{scores.count:,}", _percent(scores.top5))
    table.caption = f"cross-entropy {scores.cross_entropy:.4f}"
    return table


def ensemble(
    members: Sequence[Evaluation], joined: Evaluation, names: Sequence[str], title: str
) -> Table:
    """How an ensemble compares with its members.

    Args:
        members: The evaluation of each member.
        joined: That of the ensemble.
        names: One name per member.
        title: What was evaluated on what.
    """
    table = Table("", title=title)
    for heading in ("images", "accuracy", "top 5", "cross-entropy"):
        table.add_column(heading, justify="right")
    rows = [*zip(names, members), (f"ensemble of {len(members)}", joined)]
    for name, scores in rows:
        table.add_row(
            name,
            f"{scores.count:,}",
            _percent(scores.top1),
            "" if scores.top5 is None else _percent(scores.top5),
            f"{scores.cross_entropy:.4f}",
            style="bold" if scores is joined else None,
            end_section=scores is members[-1],
        )
    return table


def exports(reports: list[ExportReport]) -> Table:
    """How exports compare with their Keras model.

    Args:
        reports: One report per format.
    """
    header, *rows = table_rows(reports)
    title = f"Exports, compared on {reports[0].examples:,} test images"
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for position, heading in enumerate(header):
        table.add_column(heading, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    return table


def trials(trials: Sequence[Trial], title: str) -> Table:
    """What a search has found.

    Args:
        trials: Best first, at least one.
        title: Name of the search; the accuracy is that on its validation images.
    """
    # As narrow as it can be: there may be many fields.
    table = Table("trial", title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    short = [name.rpartition(".")[2] for name in trials[0].values]
    fields = [
        last if short.count(last) == 1 else name for name, last in zip(trials[0].values, short)
    ]
    is_repeated = trials[0].spread is not None
    for heading in (*fields, "steps", "accuracy", *(["spread"] * is_repeated), "seconds"):
        table.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    for trial in trials:
        table.add_row(
            str(trial.number),
            *trial.texts.values(),
            f"{trial.steps:,}",
            trial.note.split(". ")[0] or _percent(trial.accuracy),
            *([_percent(trial.spread)] if is_repeated else []),
            f"{trial.seconds:,.0f}",
            style="bold" if trial is trials[0] else None,
        )
    return table


def _numbers(values):
    return ", ".join(f"{value:,}" for value in values)


def _percent(share):
    return f"{share:.2%}"
