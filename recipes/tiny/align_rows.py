"""Makes the aligned starts, in runs/align, that a comparison names: `python recipes/tiny/align_rows.py recipes/tiny/compare_rivals.yaml`.

With names of some of them (`avg_pool_sva token_packer`) only those, to spread them over processes. A finished one is left as it is, an
interrupted one goes on. A quarter of an hour each on one core, three for one that takes every page at three rates.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from vision_remember.evaluation.plan import load_comparison
from vision_remember.training import load_recipe, train

ALIGN = Path(__file__).parent / "align.yaml"


def main(comparison: str, *names: str) -> None:
    """Aligns every row that does not start from a shipped model, each on the same pages in the same order."""
    plan = load_comparison(comparison)
    starts = {Path(str(row.checkpoint)).parent: row for row in plan.rows if row.trained_as is None}
    starts = {folder: row for folder, row in starts.items() if folder.parts[0] == "runs"}
    if unknown := set(names) - {folder.name for folder in starts}:
        known = ", ".join(folder.name for folder in starts)
        sys.exit(f"no start is called {', '.join(sorted(unknown))}; {comparison} names {known or 'none'}")
    for folder, row in starts.items():
        if names and folder.name not in names:
            continue
        weights = f"embedded/projector_{row.projector['type']}"
        model = {"projector": row.projector, "refusion": row.refusion, "projector_weights": weights}
        rates = plan.recipe(replace(row, checkpoint="scratch"), seed=0).training
        overrides = [f"model.{key}={json.dumps(value)}" for key, value in model.items()]
        overrides += [f"training.tokens_per_image={list(rates.tokens_per_image)}"]
        overrides += [f"training.every_rate={json.dumps(rates.every_rate)}"]
        train(load_recipe(ALIGN, overrides), output_dir=folder, resume=folder.exists())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
