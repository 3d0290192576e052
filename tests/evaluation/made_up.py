"""Made-up answers with known chances, for tests that need a comparison's outcome but no model."""

import random
from collections.abc import Mapping

from vision_remember.evaluation.plan import Comparison, EvaluationPlan, RowPlan
from vision_remember.evaluation.records import Record, score_answer
from vision_remember.evaluation.results import TrainedRow, build_results

FINE, COARSE = ("text", "table"), ("layout",)
CHANCES = {"uncompressed": 0.9, "avg_pool": 0.4, "avg_pool + remember": 0.85}


def comparison(splits: tuple[str, ...] = ("test",)) -> Comparison:
    """Three rows: the reference, a compressed one, and the compressed one with remember."""
    pool = {"type": "avg_pool", "scale": 3}
    rows = (
        RowPlan(name="uncompressed", projector={"type": "mlp"}),
        RowPlan(name="avg_pool", projector=pool),
        RowPlan(name="avg_pool + remember", projector=pool, refusion={"type": "remember"}),
    )
    plan = EvaluationPlan(count=100, splits=splits, fine=FINE, coarse=COARSE)
    told = {"differences": (("avg_pool + remember", "avg_pool"),), "averages": {"remember": ("avg_pool + remember",)}}
    names = {"name": "made <up> & small", "instruct": "none.yaml", "reference": "uncompressed"}
    return Comparison(**names, rows=rows, evaluation=plan, **told)


def answers(chances: Mapping[str, float], *, seeds=(0,), pages: int = 100, per_page: int = 2, layout: float = 0.8):
    """Records of every row and seed: `pages` pages a family; each row is right with its own chance, on layout all with one."""
    return {
        (row, seed): _records(row, seed, chance, pages, per_page, layout)
        for seed in seeds
        for row, chance in chances.items()
    }


def results(
    *, seeds=(0, 1), splits: tuple[str, ...] = ("test",), pages: int = 100, chances: Mapping[str, float] = CHANCES
) -> dict:
    """The content of a results.json."""
    tokens = {"uncompressed": 144}
    trained = {
        (row, seed): TrainedRow(
            tokens=tokens.get(row, 16),
            trainable_parameters=1_234_567,
            train_seconds=12.5,
            curve=_curve(chance, seed),
            device=("CPU", "a GPU")[seed % 2],
        )
        for seed in seeds
        for row, chance in chances.items()
    }
    given = {split: answers(chances, seeds=seeds, pages=pages) for split in splits}
    about = {
        "command": "vision-remember compare none.yaml --seeds 0,1 --out DIR",
        "held_equal": "400 steps of 16 samples",
        "pages": "300 pages with 600 questions (test)",
        "commit": None,
        "versions": {"torch": "2"},
    }
    return build_results(
        comparison(splits), trained, given, dict.fromkeys(chances, {"prefill_ms": 10.0, "prefill_flops": 2e9}), about
    )


def _records(row: str, seed: int, chance: float, pages: int, per_page: int, layout: float) -> list[Record]:
    rng = random.Random(f"{row}/{seed}")
    records = []
    for family in (*FINE, *COARSE):
        for number in range(pages * per_page):
            right = rng.random() < (layout if family in COARSE else chance)
            page = f"{family}-{number // per_page}"
            said = f"a{number}" if right else "<script>wrong & odd</script>"
            facts = {"id": f"{page}#{number % per_page}", "page": page, "family": family, "question": "Which?"}
            records.append(score_answer(**facts, answers=(f"a{number}",), prediction=said))
    return records


def _curve(chance: float, seed: int) -> dict[str, list[float]]:
    steps = list(range(10, 401, 10))
    return {"step": steps, "loss": [(1 - chance) + (2 + 0.1 * seed) / (1 + step / 20) for step in steps]}
