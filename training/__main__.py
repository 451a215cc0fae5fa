"""The command line: `python -m training --help`."""

import os
import pathlib
import sys
from typing import Annotated

import typer
from rich.console import Console

# Heavy imports happen inside the commands, so that help is instant. TensorFlow's own messages
# about missing GPUs are no errors of the user's.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train, evaluate and export residual networks.",
)
console = Console()

DataDir = Annotated[
    pathlib.Path | None,
    typer.Option(help="Where the prepared datasets are.", show_default="TFDS_DATA_DIR"),
]
Run = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]
Replicas = Annotated[
    int | None,
    typer.Option(
        help="Devices that share each batch: GPUs, or logical devices of the CPU.",
        show_default="all GPUs, or 1",
    ),
]


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a recipe; `list` shows them.")
    ],
    data_dir: DataDir = None,
    run_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="New directory for the run.", show_default="runs/RECIPE-seedSEED"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Train on other images: `digits`, `folder:PATH` or any TFDS name.",
            show_default="the recipe's",
        ),
    ] = None,
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
            help="Images per step over all replicas. As many images are seen in all, at the same "
            "learning rate.",
            show_default="the recipe's",
        ),
    ] = None,
    replicas: Replicas = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the weights, the order and the augmentation.")
    ] = 0,
    skip_corrupt: Annotated[
        bool,
        typer.Option("--skip-corrupt", help="Count damaged images and go on without them."),
    ] = False,
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
    import dataclasses
    import shlex

    from training import cluster, files, interruption, launch, loop, recipes, tables
    from training.workers import taking_part

    chosen = recipes.get_recipe(recipe)
    if dataset is not None:
        chosen = dataclasses.replace(chosen, dataset=dataset)
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
                replicas=replicas,
                seed=seed,
                skip_corrupt=skip_corrupt,
                resume=resume,
                checkpoint_every=checkpoint_every,
            )
    except interruption.Interrupted as stop:
        console.print(f"{stop} Continue with:")
        _print_commands(command)
        raise typer.Exit(stop.exit_code) from None
    except files.WriteError as error:
        raise ValueError(f"{error} Then continue with: python -m training {command}") from error
    console.print(tables.results(record))
    console.print(f"Curves: {run_dir}/curves.png. Next:", soft_wrap=True)
    _print_commands(
        f"evaluate {run_dir}",
        f"export {run_dir} --output saved_models/{run_dir.name}",
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
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a JSON file of one.")
    ],
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
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Directory; one with the same search is continued.",
            show_default="runs/RECIPE-SEARCH-seedSEED",
        ),
    ] = None,
    replicas: Replicas = None,
    seed: Annotated[int, typer.Option(help="Seed of the proposals and of the trainings.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away the search in the directory.")
    ] = False,
):
    """Search for better values of a recipe's fields, on the validation images."""
    import shlex

    from training import interruption, recipes, space, tables
    from training import tune as tuning

    chosen = recipes.get_recipe(recipe)
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
            overwrite=overwrite,
        )
    except interruption.Interrupted as stop:
        console.print(f"{stop} Continue with:")
        _print_commands(shlex.join(word for word in sys.argv[1:] if word != "--overwrite"))
        raise typer.Exit(stop.exit_code) from None
    console.print(tables.trials(found, f"{chosen.name}, {search}, validation accuracy"))
    console.print(f"Picture: {output}/trials.png. Train the best with:", soft_wrap=True)
    _print_commands(f"train {output}/best_recipe.json")


@app.command()
def evaluate(
    runs: Annotated[
        list[pathlib.Path],
        typer.Argument(metavar="RUN", help="Finished runs; several make an ensemble."),
    ],
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="`train`, `validation` or `test`.")] = "test",
    dataset: Annotated[
        str | None,
        typer.Option(help="Evaluate on other images.", show_default="the run's"),
    ] = None,
    crops: Annotated[
        str,
        typer.Option(
            help="What is scored of each image, and averaged: `single`, `ten` (corners and centre, "
            "mirrored too) or `multi_scale` (the whole image at several scales)."
        ),
    ] = "single",
    scales: Annotated[
        str,
        typer.Option(
            help="Comma-separated lengths in pixels of the shorter side, for `multi_scale`.",
            show_default="224,256,384,480,640 for a network of 224; 28,32,36,40 for one of 32",
        ),
    ] = "",
    mirror: Annotated[
        bool, typer.Option(help="Whether crops and scales are scored mirrored as well.")
    ] = True,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for the confusion matrix and the worst mistakes."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step; changes the speed only.")] = 250,
    replicas: Replicas = None,
):
    """Score the best weights of a run or of an ensemble of runs, every image once."""
    from training import evaluate, mistakes, tables
    from training.crops import Crops

    chosen = Crops(crops, tuple(scales.split(",")) if scales else (), mirror)
    answers = evaluate.answer(
        runs,
        split=split,
        dataset=dataset,
        data_dir=data_dir,
        batch_size=batch_size,
        replicas=replicas,
        crops=chosen,
    )
    where = f"{answers.dataset.name}, {split}, {chosen}"
    who = str(runs[0]) if len(runs) == 1 else f"ensemble of {len(runs)}"
    scores = answers.evaluation
    console.print(tables.evaluation(scores, answers.dataset.class_names, f"{who} on {where}"))
    if len(runs) > 1:
        names = [str(run) for run in runs]
        console.print(tables.ensemble(answers.evaluations, scores, names, f"Members on {where}"))
    if output is not None:
        files = mistakes.write(answers, output, title=f"{who} on {where}")
        console.print(f"Written: {', '.join(map(str, files))}", soft_wrap=True)


@app.command()
def export(
    run: Run,
    output: Annotated[
        pathlib.Path, typer.Option(help="Folder for the exports, e.g. `saved_models/NAME`.")
    ],
    data_dir: DataDir = None,
    formats: Annotated[
        str,
        typer.Option(
            help="Comma-separated, of `saved_model`, `tflite`, `tflite_float16`, `tflite_int8`."
        ),
    ] = "saved_model,tflite,tflite_int8",
    images: Annotated[int, typer.Option(help="Test images to compare on, at most.")] = 1000,
):
    """Export a run, and prove each file against the Keras model on test images."""
    from training import exports, tables

    reports = exports.export_run(
        run, output, formats=formats.split(","), data_dir=data_dir, images=images
    )
    console.print(tables.exports(reports))
    console.print(f"Written to {output}, with record.json.", soft_wrap=True)


@app.command("list")
def list_(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Names to show, e.g. `'*resnet20'`.")
    ] = "*",
    count: Annotated[
        bool,
        typer.Option(
            "--count",
            help="Count parameters and multiply-adds; half a minute for all networks.",
        ),
    ] = False,
):
    """Show the networks and the recipes."""
    from training import tables

    for table in (tables.variants(pattern, counted=count), tables.recipes(pattern)):
        if table.row_count:
            console.print(table)


@app.command()
def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the exports.")] = pathlib.Path(
        "saved_models/demo"
    ),
    replicas: Annotated[int, typer.Option(help="Devices that share each batch.")] = 2,
):
    """Train on handwritten digits, export, verify and show: a minute or two, no download."""
    from training import demo, tables

    result = demo.run(output=output, replicas=replicas)
    console.print(tables.results(result.record))
    console.print(tables.exports(result.reports))
    console.print(f"Pictures: {output}/curves.png, {output}/predictions.png", soft_wrap=True)
    demo.check_accuracy(result.record)


benchmark = typer.Typer(no_args_is_help=True)
app.add_typer(benchmark, name="benchmark", help="Measure speed on this machine.")


@benchmark.command("input")
def benchmark_input(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Compare its pipeline with its training step."),
    ] = None,
    folder: Annotated[
        pathlib.Path | None,
        typer.Option(help="Compare with a plain tf.data pipeline on the JPEG files of a folder."),
    ] = None,
    data_dir: DataDir = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per batch.", show_default="the recipe's, or 64")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches per turn.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 5,
):
    """Show whether the images come as fast as the network trains."""
    from benchmarks import input
    from training import recipes

    if (recipe is None) == (folder is None):
        raise ValueError(
            "There is nothing to measure, or too much. Expected a RECIPE or --folder PATH. "
            f"Received: recipe={recipe}, folder={folder}."
        )
    if folder is not None:
        input.of_folder(folder, batch_size=batch_size or 64, steps=steps, rounds=rounds)
    else:
        chosen = recipes.get_recipe(recipe)
        if batch_size is not None:
            chosen = chosen.with_batch_size(batch_size)
        input.of_recipe(chosen, data_dir=data_dir, steps=steps, rounds=rounds)


def _print_commands(*commands):
    for command in commands:
        console.print(f"  python -m training {command}", style="bold", soft_wrap=True)


def main():
    """Runs a command; what a user can mend ends in one message and exit code 2."""
    try:
        app(prog_name="python -m training")
    except ValueError as error:
        Console(stderr=True).print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
