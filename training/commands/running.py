"""Commands that train."""

import os
import pathlib
import sys
from typing import Annotated

import typer

from training.commands import DataDir, Replicas, app, console, print_commands

OtherDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Train on other images: `digits`, `folder:PATH` or any TFDS name.",
        show_default="the recipe's",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Another value of a recipe's field: `options.shortcut=projection`, "
        "`precision=mixed_bfloat16`, `milestones=[100,200]`, `nesterov=False`, `freeze=None`.",
        show_default="none",
    ),
]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Count damaged images and go on without them.")
]


RecipeOrFile = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a recipe, of those that `list` shows, or a JSON file of one.",
    ),
]


@app.command()
def train(
    recipe: RecipeOrFile,
    data_dir: DataDir = None,
    run_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="New directory for the run.", show_default="runs/RECIPE-seedSEED"),
    ] = None,
    dataset: OtherDataset = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Length in steps; the milestones of the learning rate move along.",
            show_default="the recipe's",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Length in passes over the training images, instead of --steps.",
            show_default="the recipe's",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images per step over all replicas. As many images are seen in all.",
            show_default="the recipe's",
        ),
    ] = None,
    scale_learning_rate: Annotated[
        bool, typer.Option("--scale-learning-rate", help="In proportion to --batch-size.")
    ] = False,
    changes: Changes = None,
    replicas: Replicas = None,
    xla: Annotated[
        bool | None,
        typer.Option(
            "--xla/--no-xla",
            help="Compile the training step of each replica.",
            show_default="on accelerators",
        ),
    ] = None,
    accumulation_steps: Annotated[
        int,
        typer.Option(min=1, help="Parts in which a replica does its batch, to need less memory."),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of the weights, the order and the augmentation."),
    ] = 0,
    skip_corrupt: SkipCorrupt = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in the directory; if there is none, start one."
        ),
    ] = False,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Time between checkpoints; each epoch ends with one."
        ),
    ] = 60.0,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,...",
            help="Processes that train together, on many machines; the first one writes the files.",
            show_default="TF_CONFIG or SLURM, or alone",
        ),
    ] = None,
    worker_index: Annotated[
        int | None, typer.Option(help="Which of the --workers this process is, from 0.")
    ] = None,
    port: Annotated[int, typer.Option(help="Under SLURM: first port on each node.")] = 8888,
    start_timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait for the other workers."),
    ] = 300.0,
    tpu: Annotated[
        str | None,
        typer.Option(help="Train on a TPU: its name, or `local`. Not tried on a real one."),
    ] = None,
):
    """Follow a recipe, and keep weights, curves and a record."""
    import shlex

    from training import cluster, files, interruption, launch, loop, tables
    from training.workers import taking_part

    chosen = _chosen(recipe, dataset, changes)
    run_dir = run_dir or loop.default_run_dir(chosen, seed)
    typed = os.environ.get(launch.COMMAND) or shlex.join(sys.argv[1:])
    command = typed if resume else f"{typed} --resume"
    member = cluster.resolve(workers, worker_index, port=port, start_timeout_seconds=start_timeout)
    try:
        with taking_part(member, run_dir, resume=resume, replicas=replicas, tpu=tpu) as own_dir:
            record = loop.train(
                chosen,
                run_dir=own_dir,
                data_dir=data_dir,
                steps=steps,
                epochs=epochs,
                batch_size=batch_size,
                scale_learning_rate=scale_learning_rate,
                replicas=replicas,
                xla="auto" if xla is None else xla,
                accumulation_steps=accumulation_steps,
                seed=seed,
                skip_corrupt=skip_corrupt,
                resume=resume,
                checkpoint_every=checkpoint_every,
            )
    except interruption.Interrupted as stop:
        console.print(f"{stop} Continue with:")
        print_commands(command)
        raise typer.Exit(stop.exit_code) from None
    except files.WriteError as error:
        raise ValueError(f"{error} Then continue with: python -m training {command}") from error
    console.print(tables.results(record))
    console.print(f"Curves: {run_dir}/curves.png. Next:", soft_wrap=True)
    print_commands(
        shlex.join(["evaluate", str(run_dir)]),
        shlex.join(["export", str(run_dir), "--output", f"saved_models/{run_dir.name}"]),
    )


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def launch(
    arguments: Annotated[
        list[str], typer.Argument(metavar="train RECIPE ...", help="What each worker does.")
    ],
    workers: Annotated[int, typer.Option(help="Number of processes.")] = 2,
    timeout: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long workers may take to start, and to stop."
        ),
    ] = 60.0,
):
    """Train in several processes of this machine, as on a cluster."""
    from training.launch import launch

    raise typer.Exit(launch(arguments, workers=workers, timeout_seconds=timeout))


@app.command()
def tune(
    recipe: RecipeOrFile,
    search: Annotated[str, typer.Option(help="`random`, `bayesian` or `hyperband`.")] = "random",
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUES",
            help="What is searched, once for each field: `learning_rate=0.01:0.5:log`, "
            "`augmentation.pad_crop_flip.padding=2:6`, `options.survival_probability=0.5:1.0:0.1`, "
            "`variant=cifar_resnet20,cifar_resnet32`.",
            show_default="learning_rate and weight_decay, up to ten times smaller and larger",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of trials, at most.", show_default="10; hyperband: all it wants"),
    ] = None,
    executions: Annotated[int, typer.Option(help="Trainings per trial, with other seeds.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Length of a trial.", show_default="the recipe's")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="The same in passes over the training images; of the longest trials of hyperband.",
            show_default="the recipe's",
        ),
    ] = None,
    data_dir: DataDir = None,
    dataset: OtherDataset = None,
    changes: Changes = None,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Directory; one with the same search is continued.",
            show_default="runs/RECIPE-SEARCH-seedSEED",
        ),
    ] = None,
    replicas: Replicas = None,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of the proposals and of the trainings."),
    ] = 0,
    skip_corrupt: SkipCorrupt = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away the search in the directory.")
    ] = False,
):
    """Search for better values of a recipe's fields, on the validation images."""
    import shlex

    from training import interruption, space, tables
    from training import tune as tuning

    chosen = _chosen(recipe, dataset, changes)
    output = output or tuning.default_output(chosen, search, seed)
    try:
        found = tuning.search(
            chosen,
            method=search,
            fields=[space.parse_field(text) for text in field or ()],
            trials=trials,
            executions=executions,
            steps=steps,
            epochs=epochs,
            data_dir=data_dir,
            output=output,
            replicas=replicas,
            seed=seed,
            skip_corrupt=skip_corrupt,
            overwrite=overwrite,
        )
    except interruption.Interrupted as stop:
        console.print(f"{stop} Continue with:")
        print_commands(shlex.join(word for word in sys.argv[1:] if word != "--overwrite"))
        raise typer.Exit(stop.exit_code) from None
    console.print(tables.trials(found, f"{chosen.name}, {search}, validation accuracy"))
    console.print(f"Picture: {output}/trials.png. Train the best with:", soft_wrap=True)
    print_commands(shlex.join(["train", f"{output}/best_recipe.json"]))


def _chosen(recipe, dataset, changes):
    """The recipe of a name or file, for other images and with other values."""
    import dataclasses

    from training import recipes

    chosen = recipes.get_recipe(recipe)
    if dataset is not None:
        chosen = dataclasses.replace(chosen, dataset=dataset, validation_examples=None)
    return chosen.changed(dict(map(_change, changes or ())))


def _change(text):
    """`("learning_rate", 0.2)` of `learning_rate=0.2`."""
    from training.kinds import literal

    field, equals, value = text.partition("=")
    if not equals:
        raise ValueError(
            f"A recipe cannot be changed so. Expected --set FIELD=VALUE. Received: --set {text!r}."
        )
    return field, literal(value)
