"""What the verbs of the command line do: each calls one room and says what came out. What can be typed is in `vision_remember_cli.py`.

A verb returns a `Report` and prints nothing but progress, to stderr. Rooms are imported inside the verbs, so that `data check` does not
wait for the trainer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vision_remember.cli_data import data_check as data_check
from vision_remember.cli_data import data_make as data_make
from vision_remember.cli_data import data_show as data_show
from vision_remember.cli_report import Report, rendered

HERE = Path(__file__).parent
RECIPES = (HERE / "recipes", HERE.parent / "recipes")  # installed, and in a checkout
SHIPPED = "embedded/llava_vr_tiny"
DEMO_PAGE = ("table", "test", 0, 0)  # family, split, seed, index


def demo(out: Path) -> Report:
    """Ask the shipped model about a fresh page, then run the demo comparison into `out`."""
    from vision_remember.data.synthetic import make_page

    page = make_page(*DEMO_PAGE)
    asked = page.questions[0]
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "page.png"
    page.image.save(picture)
    answered = ask(picture, asked.question, model=SHIPPED, explain=out / "page_explained.png")
    console = Console(stderr=True)
    console.print(
        f"{picture}: {asked.question}\n  the model says {answered.text!r}, the page says {asked.answer!r}",
        highlight=False,
        markup=False,
    )
    compared = compare("tiny/demo.yaml", (0,), out)
    return Report(text=compared.text, data={"asked": {**answered.data, "expected": asked.answer}, **compared.data})


def ask(
    image: Path,
    question: str,
    *,
    model: str,
    max_new_tokens: int = 64,
    explain: Path | None = None,
    tokens: int | None = None,
) -> Report:
    """Answer a question about an image, read in so many vision tokens; with `explain`, also draw where they looked."""
    from vision_remember.data.images import decode_image
    from vision_remember.model.chat import first_question
    from vision_remember.model.engine import Engine, Request

    if explain is not None and (explain.suffix.lower() != ".png" or not explain.parent.is_dir()):
        raise ValueError(f"--explain {explain}: name a .png file in a folder that exists")
    request = Request(first_question(question, num_images=1), [decode_image(image)])
    engine = Engine.load(model_folder(model), tokens_per_image=tokens)
    if explain is None:
        [answer] = engine.answer([request], max_new_tokens=max_new_tokens)
    else:
        from vision_remember.analysis.explain import draw_looks, save_png

        look = engine.explain(request, max_new_tokens=max_new_tokens)
        answer = look.answer
        title = f"{question}  {answer.text}"
        margin = engine.model.config.refusion.get("margin", 0)
        save_png(
            draw_looks(look.image, look.attention, look.patch_grid, look.token_grid, margin=margin, title=title),
            explain,
        )
    data = {
        "model": model,
        "image": str(image),
        "question": question,
        "answer": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "explain": None if explain is None else str(explain),
    }
    return Report(text=answer.text, data=data)


def train(recipe: str, overrides: Sequence[str], *, resume: bool, out: Path | None = None) -> Report:
    """Train the model of a recipe, into `out`, the recipe's own folder, or `runs/NAME`."""
    from vision_remember import training

    plan = training.load_recipe(recipe_file(recipe), overrides)
    folder = training.train(plan, resume=resume, output_dir=out or plan.output_dir or Path("runs") / plan.name)
    if training.distributed.rank() != 0:
        raise SystemExit(0)  # of several processes, the first one reports
    return Report(text=f"trained model: {folder}", data={"model": str(folder)})


def convert(source: Path, target: Path, *, refusion: str, vision: str | None, text: str | None) -> Report:
    """Turn a LLaVA checkpoint into a model folder."""
    from vision_remember.model.conversion import convert as convert_llava

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; name a new one")
    options = _yaml(refusion, f"--refusion {refusion!r}: write it as NAME or '{{type: NAME, option: value}}'")
    options = {"type": options} if isinstance(options, str) else options
    model, processor = convert_llava(source, refusion=options, vision=vision, text=text)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    config = model.config
    data = {
        "model": str(target),
        "projector": config.projector,
        "refusion": config.refusion,
        "resolution": config.resolution,
    }
    return Report(
        text=f"converted model: {target} (refusion {config.refusion['type']}, {config.resolution['mode']})", data=data
    )


def dry_run(recipe: str, overrides: Sequence[str], *, gpus: int = 1, gpu_memory: str | None = None) -> Report:
    """Describe the run of a recipe from the shapes of its model, and refuse it where it cannot fit."""
    from vision_remember import cli_dry_run

    lines, found = cli_dry_run.describe(recipe_file(recipe), overrides, gpus=gpus, gpu_memory=gpu_memory)
    return Report(text="\n".join(lines), data=found)


def bench_prefill(size: str, *, batch: int, rounds: int) -> Report:
    """Time a model that remembers against the same one without, and against all patches: prefill and decode."""
    from vision_remember.bench import prefill

    if size not in prefill.SIZES:
        raise ValueError(f"--size {size}: choose one of {', '.join(prefill.SIZES)}")
    found = prefill.measure(prefill.SIZES[size], rounds=rounds, batch=batch)
    return Report(text="\n".join(prefill.text_lines(found)), data=found)


def bench_step(recipe: str, overrides: Sequence[str], *, rounds: int) -> Report:
    """Time training steps of a recipe on random weights and tokens, and measure their memory beside the estimate."""
    from vision_remember.bench import step
    from vision_remember.training import load_recipe

    file = recipe_file(recipe)
    found = step.measure(load_recipe(file, overrides, has_files=False), beside=file.parent, rounds=rounds)
    return Report(text="\n".join(step.text_lines(found)), data=found)


def evaluate(
    model: str,
    task: str | None,
    suite: str | None,
    options: Sequence[str],
    out: Path | None,
    tokens: int | None = None,
) -> Report:
    """Score a model on a task, or on every task of a suite."""
    from vision_remember import evaluation
    from vision_remember.evaluation.suite import evaluate_suite, summary
    from vision_remember.evaluation.table import headlines_table, scores_table

    chosen = dict(_option(option) for option in options)
    console = Console(stderr=True)
    if suite is None:
        task = task or "synthetic_documents"
        about = {"type": task, **chosen}
        result = evaluation.evaluate(model_folder(model), about, out=out, console=console, tokens_per_image=tokens)
        return Report(text=rendered(scores_table(result)), data=result.to_dict())
    if task is not None:
        raise ValueError(f"--task {task} and --suite {suite}: give one of them")
    folder = model_folder(model)
    results = evaluate_suite(folder, suite, chosen, out=out, console=console, tokens_per_image=tokens)
    return Report(text=rendered(headlines_table(results)), data=summary(results))


def paper_table(runs: Path) -> Report:
    """Lay measured runs beside the published figures."""
    from vision_remember.evaluation import paper_table

    found = paper_table.paper_table(runs)
    return Report(text=rendered(paper_table.tables(found)), data=found)


def compare(
    recipe: str, seeds: Sequence[int], out: Path, overrides: Sequence[str] = (), shard: tuple[int, int] = (1, 1)
) -> Report:
    """Train and evaluate every row of a comparison, or what is left of it, or one shard of that."""
    from vision_remember import evaluation
    from vision_remember.evaluation.table import results_table

    results = evaluation.compare(
        recipe_file(recipe), seeds=seeds, out=out, overrides=overrides, shard=shard, console=Console(stderr=True)
    )
    if results is None:
        left = f"shard {shard[0]}/{shard[1]} is done; rows of other shards are missing in {out}"
        return Report(text=f"{left}: run them too, then the command once more", data={"finished": False})
    files = {"results": str(out / "results.json"), "report": str(out / "report.html")}
    return Report(text=rendered(results_table(results)) + "\n".join(files.values()), data={**results, "files": files})


def analyse(
    models: Sequence[str], out: Path, *, images: Path | None, count: int | None, question: str | None, seed: int
) -> Report:
    """Look inside models: what their vision tokens forget, and what they get back."""
    from vision_remember.analysis import analyse as analysis

    for name in models:
        model_folder(name)
    found = analysis.analyse(
        models, out, images=images, count=count, question=question, seed=seed, console=Console(stderr=True)
    )
    return Report(text="\n".join(analysis.text_lines(found)), data=found)


def list_methods() -> Report:
    """List what the plug-in rooms hold."""
    from vision_remember import cli_list

    found = {"projectors": cli_list.projectors(), "refusion": cli_list.refusions()}
    return Report(text="\n".join(map(rendered, cli_list.tables(found))).rstrip("\n"), data=found)


def foundation_build(out: Path) -> Report:
    """Train the embedded backbones again."""
    from vision_remember import foundation

    folder = foundation.build(out)
    return Report(text=str(folder), data={"foundation": str(folder)})


def model_folder(name: str) -> str:
    """The folder or hub id a user means by `--model`; a folder that is not there is not looked for on the hub.

    Raises:
        ValueError: a shipped model or a folder that does not exist, or is a model of another kind.
    """
    from vision_remember.model.embedded import model_path

    path = Path(model_path(name))
    is_hub_id = name.count("/") == 1 and not path.parent.exists()
    if not path.is_dir() and not is_hub_id:
        raise ValueError(f"no model folder {name}; give one that training wrote, ORG/NAME of the hub, or {SHIPPED}")
    config = path / "config.json"
    if path.is_dir() and not (config.is_file() and '"vision_remember"' in config.read_text(encoding="utf-8")):
        raise ValueError(
            f"{name} holds no model of this package; backbones are joined to one by training them together"
        )
    return str(path)


def recipe_file(name: str) -> Path:
    """The file a user means by RECIPE: their own, or one that ships.

    Raises:
        ValueError: neither exists; names the shipped ones.
    """
    for path in (Path(name), *(folder / name for folder in RECIPES)):
        if path.is_file():
            return path
    shipped = sorted({str(path.relative_to(folder)) for folder in RECIPES for path in folder.glob("**/*.yaml")})
    raise ValueError(f"no recipe {name}; give a file, or one of {', '.join(shipped)}")


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    how = f"option {text!r}: write it as key=value"
    if not equals:
        raise ValueError(how)
    return key, _yaml(value, f"{how}, with a value in YAML such as 3, test or [table, form]")


def _yaml(text: str, how: str) -> Any:
    """A value as it was typed; `how` says what else to type."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # YAML's dates raise the latter
        raise ValueError(how) from None
