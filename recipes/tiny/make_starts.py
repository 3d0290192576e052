"""Makes what the rows of a comparison start from, in runs/projectors and runs/align:
`python recipes/tiny/make_starts.py recipes/tiny/compare_rivals.yaml`.

With names of some of them (`avg_pool_sva token_packer`) only those, to spread them over processes. A finished one is left as it is, an
interrupted one goes on. On one core a projector takes some minutes, an aligned model a quarter of an hour, and three quarters of an hour
where it takes every page at three rates.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from vision_remember.evaluation.plan import Comparison, RowPlan, load_comparison
from vision_remember.foundation.projector import pretrain_projector
from vision_remember.model.embedded import model_path
from vision_remember.training import load_recipe, train

ALIGN = Path(__file__).parent / "align.yaml"
FOUNDATION = Path(model_path("embedded/encoder")).parent


def main(path: str, *names: str) -> None:
    """Makes every start that does not ship, each from the same pages in the same order."""
    comparison = load_comparison(path)
    rows = {
        Path(row.checkpoint or str(row.projector_weights)): row for row in comparison.rows if row.trained_as is None
    }
    starts = {start.parent if row.checkpoint else start: row for start, row in rows.items() if start.parts[0] == "runs"}
    if unknown := set(names) - {folder.name for folder in starts}:
        known = ", ".join(folder.name for folder in starts)
        sys.exit(f"no start is called {', '.join(sorted(unknown))}; {path} names {known or 'none'}")
    for folder, row in starts.items():
        if names and folder.name not in names:
            continue
        if row.checkpoint:
            _align(folder, comparison, row)
        elif not (folder / "model.safetensors").is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            pretrain_projector(folder, FOUNDATION, 0, row.projector)


def _align(folder: Path, comparison: Comparison, row: RowPlan) -> None:
    """Aligns a row as align.yaml says, with the row's own overrides and numbers of tokens, from its projector's shipped weights."""
    weights = f"embedded/projector_{row.projector['type']}"
    model = {"projector": row.projector, "refusion": row.refusion, "projector_weights": weights}
    instruct = comparison.recipe(replace(row, checkpoint="scratch"), seed=0).training
    training = {"tokens_per_image": instruct.tokens_per_image, "every_rate": instruct.every_rate}
    values = {f"model.{key}": value for key, value in model.items()} | row.overrides
    values |= {f"training.{key}": value for key, value in training.items()}
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    train(load_recipe(ALIGN, overrides), output_dir=folder, resume=folder.exists())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
