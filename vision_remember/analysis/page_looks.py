"""One page under the attention of its insertions: where the vision tokens looked, layer by layer, with the answer's place framed."""

import matplotlib as mpl
from matplotlib.patches import Rectangle
from PIL import Image

from vision_remember.analysis.explain import draw_looks, looked
from vision_remember.analysis.figures import DOTS_PER_INCH, Drawn
from vision_remember.analysis.measurement import Measurement
from vision_remember.analysis.sheets import Sheet
from vision_remember.evaluation.figures import STYLE, WIDTH_INCHES
from vision_remember.geometry import windows
from vision_remember.model.pixels import fit

MOST_LAYERS = 4  # drawn beside the page; the CSV file holds all
FRAME = "#0072B2"


def page_looks(one: Measurement, sheet: Sheet, index: int, canvas: Image.Image, name: str) -> Drawn:
    """Draws where the tokens of one sheet looked.

    Args:
        one: A model that recorded looks.
        sheet: The sheet.
        index: Its number among those that were recorded.
        canvas: The sheet as the model saw it.
        name: Of the files.
    """
    attention = {layer: weights[index][:, None] for layer, weights in sorted(one.looks.items())}
    own = windows(one.patch_grid, one.token_grid, one.margin)
    rows = [
        {"layer": layer, "row": row, "column": column, "attention_over_even": f"{ratio:.4f}"}
        for layer, weights in attention.items()
        for row, ratios in enumerate(looked(weights, own, one.patch_grid).tolist())
        for column, ratio in enumerate(ratios)
    ]
    layers = list(attention)
    drawn = (
        layers
        if len(layers) <= MOST_LAYERS
        else [layers[k * (len(layers) - 1) // (MOST_LAYERS - 1)] for k in range(MOST_LAYERS)]
    )
    with mpl.rc_context(STYLE):
        figure = draw_looks(
            canvas,
            {layer: attention[layer] for layer in drawn},
            one.patch_grid,
            one.token_grid,
            margin=one.margin,
            title=sheet.question,
        )
        figure.set_dpi(DOTS_PER_INCH)
        figure.set_size_inches(WIDTH_INCHES, WIDTH_INCHES / (1 + len(drawn)) + 0.7)
        if sheet.evidence is not None:
            figure.axes[0].add_patch(_frame(one, sheet, canvas))
    return Drawn(name=name, figure=figure, rows=rows)


def _frame(one: Measurement, sheet: Sheet, canvas: Image.Image) -> Rectangle:
    """The evidence in the units of the picture, which are patches."""
    assert sheet.evidence is not None
    left, top, width, height = fit(sheet.image.size, canvas.size)
    across = one.patch_grid.width / canvas.width * width / sheet.image.width
    down = one.patch_grid.height / canvas.height * height / sheet.image.height
    x, y = left * one.patch_grid.width / canvas.width, top * one.patch_grid.height / canvas.height
    x0, y0, x1, y1 = sheet.evidence
    return Rectangle(
        (x + x0 * across, y + y0 * down), (x1 - x0) * across, (y1 - y0) * down, fill=False, color=FRAME, linewidth=2
    )
