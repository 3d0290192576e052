"""Train and evaluate every row of a comparison with the same data, order and budget, and write what came out.

Row by row and seed by seed, each in a folder of its own: an interrupted comparison goes on where it stopped, a finished row is not run
again, and a changed recipe is refused before anything is trained. Seeds are the outer loop, so that a comparison stopped early has whole
seeds to show.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vision_remember.evaluation.commit import source_commit
from vision_remember.evaluation.plan import Comparison, load_comparison
from vision_remember.evaluation.prefill import prefill_cost
from vision_remember.evaluation.records import write_json, write_text
from vision_remember.evaluation.results import build_results
from vision_remember.evaluation.row_folder import RowFolder
from vision_remember.evaluation.runner import answer_questions, prompt_text, versions
from vision_remember.evaluation.specimens import choose
from vision_remember.evaluation.tasks import Question, load_task
from vision_remember.training import FeatureCache, train

Tasks = dict[str, list[Question]]


def compare(
    path: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    out: str | Path,
    overrides: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Run a comparison, or what is left of it, and write `results.json` and `report.html`.

    Args:
        path: the comparison's YAML file (see `plan.py`).
        seeds: training seeds; every row is trained with each.
        out: folder of the comparison.
        overrides: `evaluation.count=500`, dotted keys of the comparison.
        shard: (i, n) trains only every n-th model, from the i-th on, and has it answer. Processes or machines that share `out`, or whose
            `out/rows` are copied together, weights left out, make one comparison; its training times are then not measured side by side.
        console: where progress is shown; None shows none.

    Returns:
        The content of `results.json`; None while rows of other shards are missing, and then nothing but rows is written.

    Raises:
        ValueError: the comparison, a row's recipe or its model is wrong, a row in `out` was made with another one, or a sample cannot be
            used; all but the last before anything is trained.
    """
    from vision_remember.evaluation.report import render_report  # matplotlib, which only a finished comparison needs

    comparison, out = load_comparison(path, overrides), Path(out)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)}: give at least one, and each once")
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard {shard}: give (i, n) with i from 1 to n, such as (1, 2) and (2, 2)")
    folders = [RowFolder.of(comparison, row, seed, out) for seed in seeds for row in comparison.rows]
    for folder in folders:
        folder.check()
        if folder.seed == seeds[0] and not folder.is_finished:
            folder.check_model()
    splits = comparison.evaluation.splits
    tasks: Tasks = {split: load_task(comparison.evaluation.task(split)) for split in splits}
    cache = FeatureCache()
    models = list(dict.fromkeys(folder.training for folder in folders))
    own = models[shard[0] - 1 :: shard[1]]
    for number, folder in enumerate(folders, 1):
        if folder.training not in own:
            continue
        title = f"row {number} of {len(folders)}: {folder.row.name}, seed {folder.seed}"
        if folder.is_finished:
            _say(console, f"{title}: finished before")
        else:
            _say(console, title)
            _run(comparison, folder, tasks, cache, console)

    if not all(folder.is_finished for folder in folders):
        return None
    first = [folder for folder in folders if folder.seed == seeds[0]]
    engines = {folder.row.name: folder.engine(with_weights=False) for folder in first}
    question = tasks[splits[0]][0]
    results = build_results(
        comparison,
        {(folder.row.name, folder.seed): folder.trained() for folder in folders},
        {split: {(folder.row.name, folder.seed): folder.answers(split) for folder in folders} for split in splits},
        prefill_cost(engines, question),
        {
            "command": _command(path, seeds, overrides),
            "held_equal": _held_equal(folders[0]),
            "pages": _pages(comparison, tasks),
            "prompt": prompt_text(engines[comparison.reference], question),
            "commit": source_commit(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        },
    )
    specimens = choose(tasks[splits[0]], {folder.row.name: folder.answers(splits[0]) for folder in first})
    write_json(out / "results.json", results)
    write_text(out / "report.html", render_report(results, specimens))
    return results


def _run(comparison: Comparison, folder: RowFolder, tasks: Tasks, cache: FeatureCache, console: Console | None) -> None:
    """Train one row, or resume it, and have it answer every split."""
    folder.begin()
    train(folder.recipe, resume=True, output_dir=folder.training, feature_cache=cache)
    engine, plan = folder.engine(), comparison.evaluation
    for split, questions in tasks.items():
        label = f"{folder.row.name}, {split}"
        lengths = {"batch_size": plan.batch_size, "max_new_tokens": plan.max_new_tokens}
        folder.save_answers(split, answer_questions(engine, questions, **lengths, console=console, label=label))
    folder.finish(tokens=engine.token_grid.num_cells)


def _held_equal(folder: RowFolder) -> str:
    training = folder.recipe.training
    batch = training.batch_size * training.accumulation
    return (
        f"{training.steps:,} steps of {batch} samples, {training.steps * batch:,} in all, the same samples in the same order for every row "
        f"of a seed. Trained: {', '.join(training.trainable)}, unless the row says otherwise."
    )


def _pages(comparison: Comparison, tasks: Tasks) -> str:
    plan = comparison.evaluation
    counts = [
        f"{len({question.page for question in questions}):,} pages with {len(questions):,} questions ({split})"
        for split, questions in tasks.items()
    ]
    return f"{'; '.join(counts)}; never seen in training, seed {plan.seed}. Each question is asked alone and answered greedily."


def _command(path: str | Path, seeds: Sequence[int], overrides: Sequence[str]) -> str:
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return " ".join(
        ["vision-remember compare", str(path), "--seeds", ",".join(map(str, seeds)), "--out DIR", *overrides]
    )


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, highlight=False)
