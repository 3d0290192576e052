"""The console script `vision-remember`: what can be typed. What each verb does is in `vision_remember/cli.py`.

It lives beside the package because importing the package takes seconds (torch, transformers) and `--help` must not: the package is
imported inside `run`, once a command line is known to be right. What a shell gets back is in `vision_remember_shell.py`.
"""

from pathlib import Path
from typing import Annotated

import typer

from vision_remember_shell import open_closed_streams, run

TINY = "embedded/llava_vr_tiny"

app = typer.Typer(
    name="vision-remember",
    help="Efficient vision-language models that look again: train, compare and ask them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(no_args_is_help=True, help="Make, look at and check data sets.")
foundation = typer.Typer(no_args_is_help=True, help="The tiny encoder and language model that ship with the package.")
app.add_typer(data, name="data")
app.add_typer(foundation, name="foundation")
bench = typer.Typer(no_args_is_help=True, help="Measure what the methods cost on this machine.")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Model = Annotated[str, typer.Option("--model", help="Model folder, hub id, or embedded/NAME for a shipped one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=value]...", help="Recipe keys to set.", show_default=False)
]
Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a shipped one, as tiny/demo.yaml.")
]
Tokens = Annotated[int | None, typer.Option(help="Vision tokens an image.", show_default="as many as the model makes")]
Split = Annotated[str, typer.Option(help="train, test (unseen content) or shift (unseen fonts and sizes).")]
Families = Annotated[
    list[str] | None, typer.Option("--family", help="Document family; repeat for several.", show_default="all of them")
]


def main() -> None:
    """Run the command line of this process and exit with its status."""
    open_closed_streams()
    app()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results.json and report.html.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """Ask the shipped model, then train and compare three models on this machine."""
    run(lambda cli: cli.demo(out), as_json)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)],
    model: Model = TINY,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.png", help="Draw where the vision tokens looked when they remembered.", show_default=False
        ),
    ] = None,
    tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Answer a question about an image."""
    how = {"model": model, "max_new_tokens": max_new_tokens, "explain": explain, "tokens": tokens}
    run(lambda cli: cli.ask(image, question, **how), as_json)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="the recipe's output_dir, or runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the run from shapes alone; start nothing.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Of a dry run: GPUs that share a step.")] = 1,
    gpu_memory: Annotated[str | None, typer.Option(help="Of a dry run: refuse what does not fit, as 80GiB.")] = None,
    as_json: Json = False,
) -> None:
    """Train the model a recipe describes."""
    if dry_run:
        return run(lambda cli: cli.dry_run(recipe, overrides or [], gpus=gpus, gpu_memory=gpu_memory), as_json)
    run(lambda cli: cli.train(recipe, overrides or [], resume=resume, out=out), as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a LLaVA checkpoint.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the model.", show_default=False)],
    refusion: Annotated[
        str, typer.Option(help="Method to add, fresh: a name, or {type: NAME, option: value}.")
    ] = "none",
    vision: Annotated[str | None, typer.Option(help="Encoder beside a bare mm_projector.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="Language model beside it.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Turn a LLaVA-1.5 or LLaVA-NeXT checkpoint into a model of this package."""
    run(lambda cli: cli.convert(source, target, refusion=refusion, vision=vision, text=text), as_json)


@app.command()
def evaluate(
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Options of the task.", show_default=False)
    ] = None,
    model: Model = TINY,
    task: Annotated[
        str | None,
        typer.Option(help="dataset or a benchmark such as chartqa (path=FOLDER).", show_default="synthetic_documents"),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder with a local copy of each benchmark, or synthetic.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for every answer and the scores.", show_default=False)
    ] = None,
    tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Score a model on a task, or on every task of a suite, per family with 95 % intervals.

    Options of synthetic_documents: count=1000 split=test seed=0 families=[table,form] questions=1; of a benchmark: path=FOLDER limit=100.
    """
    run(lambda cli: cli.evaluate(model, task, suite, options or [], out, tokens), as_json)


@app.command("paper-table")
def paper_table(
    runs: Annotated[Path, typer.Option(help="Folder that evaluate and compare wrote into, searched at any depth.")],
    as_json: Json = False,
) -> None:
    """Lay measured runs beside published figures; every cell says which it is."""
    run(lambda cli: cli.paper_table(runs), as_json)


@app.command()
def compare(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Folder for results.json and report.html; a second run continues.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    shard: Annotated[str, typer.Option(metavar="I/N", help="Train every N-th row, from the I-th on.")] = "1/1",
    as_json: Json = False,
) -> None:
    """Train and evaluate every row of a matrix with the same data, order and budget."""
    numbers, part = _seeds(seeds), _shard(shard)
    run(lambda cli: cli.compare(recipe, numbers, out, overrides or [], part), as_json)


@app.command()
def analyse(
    out: Annotated[Path, typer.Option(help="Folder for report.html and the figures (PNG, SVG, CSV).")],
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Models to look inside, on the same pages.", show_default=TINY),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of your own images; without probes.", show_default="rendered pages"),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Rendered pages.", show_default="1000")] = None,
    question: Annotated[
        str | None,
        typer.Option(help="Asked about each of --images.", show_default="What is written on this page?"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rendered pages.")] = 0,
    as_json: Json = False,
) -> None:
    """Look inside models: what vision tokens forget, what they get back, and where they look."""
    chosen = models or [TINY]
    run(lambda cli: cli.analyse(chosen, out, images=images, count=count, question=question, seed=seed), as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List projectors and re-fusion methods with tokens and parameters at the size of the paper's model."""
    run(lambda cli: cli.list_methods(), as_json)


@data.command()
def make(
    out: Annotated[Path, typer.Option(help="Folder for data.json and the images.")],
    count: Annotated[int, typer.Option(min=1, help="Number of pages.")],
    split: Split = "train",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    family: Families = None,
    as_json: Json = False,
) -> None:
    """Render synthetic documents with questions and answers."""
    run(lambda cli: cli.data_make(out, count=count, split=split, seed=seed, families=family), as_json)


@data.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Picture to write.", show_default="DIR/contact_sheet.png")] = None,
    as_json: Json = False,
) -> None:
    """Draw a contact sheet of a data folder."""
    run(lambda cli: cli.data_show(folder, out), as_json)


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Find every bad sample of a data folder and say how to cure it; exit 1 if there is one."""
    run(lambda cli: cli.data_check(folder), as_json)


@foundation.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("runs/foundation"), as_json: Json = False
) -> None:
    """Train the embedded encoder and language model again, from nothing (hours on two cores)."""
    run(lambda cli: cli.foundation_build(out), as_json)


@bench.command()
def prefill(
    size: Annotated[
        str, typer.Option(help="0.5b or 2b: CLIP-L and an LLM of 0.5 or 1.5 B; tiny to try the command.")
    ] = "0.5b",
    batch: Annotated[int, typer.Option(min=1, help="Pages read at once, each with its question.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Measured rounds.")] = 21,
    as_json: Json = False,
) -> None:
    """Time 576 vision tokens, 144, and 144 with three insertions of remember, in turns: random weights; on the GPU if there is one."""
    run(lambda cli: cli.bench_prefill(size, batch=batch, rounds=rounds), as_json)


@bench.command()
def step(
    recipe: Recipe,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured micro-batches.")] = 5,
    as_json: Json = False,
) -> None:
    """Time the longest training step of a recipe on random weights, on the GPU if there is one, and its memory beside the estimate."""
    run(lambda cli: cli.bench_step(recipe, overrides or [], rounds=rounds), as_json)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers such as 0,1,2", param_hint="--seeds"
        ) from None
    if len(set(seeds)) < len(seeds):
        raise typer.BadParameter(f"{text!r} names a seed twice", param_hint="--seeds")
    return seeds


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f"{text!r} is not a shard such as 1/2 or 2/2", param_hint="--shard")
    return int(number), int(count)


if __name__ == "__main__":
    main()
