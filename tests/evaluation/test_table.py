import io

from rich.console import Console

from tests.evaluation import made_up
from vision_remember.evaluation.table import results_table


def test_the_table_says_what_the_results_say() -> None:
    results = made_up.results(pages=30)
    printed = _printed(results)
    gain = results["summary"]["recovered"]["avg_pool + remember"]
    assert f"{gain['mean']:.2f} ({gain['ci95'][0]:.2f} to {gain['ci95'][1]:.2f})" in printed
    for name in made_up.CHANCES:
        assert f"{100 * results['summary']['means'][name]['value']:.1f} [" in printed and name in printed
    assert "over 60 questions: too few to say" in printed
    assert f"remember recovers {gain['mean']:.2f} on average over avg_pool + remember" in printed
    assert "avg_pool + remember differs from avg_pool by +" in printed and "does not say" not in printed


def test_a_row_that_stands_apart_is_said_to() -> None:
    results = made_up.results(pages=30)
    results["apart"] = {"avg_pool + remember": "it sees more pixels"}
    assert "avg_pool + remember stands apart: it sees more pixels." in _printed(results)


def test_a_missing_recovery_is_explained() -> None:
    chances = {"uncompressed": 0.3, "avg_pool": 0.6, "avg_pool + remember": 0.6}
    printed = _printed(made_up.results(pages=30, chances=chances))
    assert "For avg_pool + remember, recovery is not defined: uncompressed leads avg_pool by -" in printed


def _printed(results: dict) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(results_table(results))
    return out.getvalue()
