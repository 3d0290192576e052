from tests.evaluation import made_up
from vision_remember.evaluation import figures


def test_every_row_of_many_is_told_apart_in_every_plot() -> None:
    names = [f"row {number}" for number in range(20)]
    results = {"reference": names[3], "rows": [{"name": name} for name in names]}
    styles = figures.row_styles(results)
    assert styles.keys() == set(names)
    assert len({(style.colour, style.marker) for style in styles.values()}) == 20
    assert len({(style.colour, style.line) for style in styles.values()}) == 20
    assert [name for name in names if styles[name].colour == figures.REFERENCE_COLOUR] == [names[3]]


def test_the_tokens_plot_holds_every_row_and_its_legend() -> None:
    results = made_up.results()
    assert all(name in figures.score_against_tokens(results) for name in made_up.CHANCES)
    draw = figures.score_against_tokens.__wrapped__  # the figure itself
    few = draw(results)
    for number in range(20):
        name = f"another row {number}"
        results["rows"].append({**results["rows"][-1], "name": name})
        results["summary"]["means"][name] = results["summary"]["means"]["avg_pool"]
    many = draw(results)
    assert many.get_figheight() > few.get_figheight()
    (axis,) = many.axes
    low, high = axis.get_xlim()
    places = [bars.lines[0].get_xdata()[0] for bars in axis.containers]
    assert len(set(places)) == 23 and low < min(places) < max(places) < high
