"""The memory of vision tokens as rows that travel through `generate`, and back into the state the insertions need.

`generate` encodes images once, repeats the result for beams and slices it for chunked prefill. It knows two fields, `pooler_output` and
`deepstack_features`, and treats both as one row per placeholder token, in a list with one tensor per image. So everything an insertion
must know about a token is in its row: the memory itself in one tensor, and whole numbers (which slots are filled, where they lie, and
`FACTS`) in a second one, because bfloat16 cannot count past 256.

At any resolution an image is several views, whose tokens stand between each other's, and newlines. Then each view is what the state calls
an image, and a newline, which owns no memory, has an empty row: whoever slices finds one row per placeholder, the insertions never see it.

Source: `_expand_multimodal_outputs` and `_slice_mm_encoder_output` in transformers/generation/utils.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import torch_compilable_check

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.outputs import VisionRememberImageFeatures
from vision_remember.refusion import Memory, RefusionState, flat_positions
from vision_remember.tiling import NEWLINE, Layout

# Of every token: its number among all of its image, its view, its number among those of its view, and how many its view has (newlines: 0).
FACTS = ("step", "view", "index", "count")


def pack(memory: Memory) -> list[list[Tensor]]:
    """Lay the memory of B images of one view out as `deepstack_features`.

    Args:
        memory: Rows, filled slots and places of B images with V tokens each.

    Returns:
        Two lists of B tensors: `float[V, M]`, and `long[V, 2 W + 4]` with filled slots, places and `FACTS`.
    """
    num_images, num_tokens, _ = memory.place.shape
    index = torch.arange(num_tokens, device=memory.place.device).expand(num_images, -1)
    numbers = torch.stack([index, torch.zeros_like(index), index, torch.full_like(index, num_tokens)], dim=-1)
    facts = torch.cat([memory.valid.long(), memory.place, numbers], dim=-1)
    return [list(memory.rows.unbind()), list(facts.unbind())]


def pack_views(memory: Memory, layouts: Sequence[Layout]) -> list[list[Tensor]]:
    """Lay the memory of the views of N any-resolution images out as `deepstack_features`.

    Args:
        memory: Rows, filled slots and places of all views, image after image.
        layouts: Of the images.

    Returns:
        As `pack`, with one row per token of each image; those of newlines are empty.
    """
    packed: list[list[Tensor]] = [[], []]
    views = [layout.num_views for layout in layouts]
    for layout, *parts in zip(
        layouts, *(x.split(views) for x in (memory.rows, memory.valid, memory.place)), strict=True
    ):
        source, device = layout.source.to(memory.place.device), memory.place.device
        is_newline = (source == NEWLINE)[:, None]
        rows, valid, place = (x.flatten(0, 1)[source.clamp(min=0)] for x in parts)
        step = torch.arange(layout.num_tokens, device=device)
        numbers = torch.stack([step, *(x.to(device) for x in (layout.view, layout.index, layout.count))], dim=-1)
        packed[0].append(rows.masked_fill(is_newline, 0))
        packed[1].append(torch.cat([(valid & ~is_newline).long(), place, numbers], dim=-1))
    return packed


def without_rows(image: VisionRememberImageFeatures) -> VisionRememberImageFeatures:
    """The same images without a single row: what uses every parameter of the insertions and changes nothing."""
    if image.deepstack_features is None:
        return image
    rows = [[tensor[:0] for tensor in tensors] for tensors in image.deepstack_features]
    return VisionRememberImageFeatures(pooler_output=image.pooler_output, deepstack_features=rows)


def check_counts(is_placeholder: Tensor, num_tokens: int, tokens_per_view: int) -> None:
    """Refuse a chunk whose placeholders and vision tokens disagree.

    Args:
        is_placeholder: bool[B, T].
        num_tokens: Vision tokens given.
        tokens_per_view: For the message.

    Raises:
        ValueError: With both counts.
    """
    torch_compilable_check(
        is_placeholder.sum() == num_tokens,
        lambda: (
            f"{int(is_placeholder.sum())} image placeholders in input_ids, {num_tokens} vision tokens given "
            f"({tokens_per_view} per view of an image); build ids and pixels with the processor, and never cut an image when truncating"
        ),
    )


def state_of_chunk(
    model: Any,
    image: VisionRememberImageFeatures,
    is_placeholder: Tensor,
    input_ids: Tensor | None,
    *,
    tokens_per_image: int | None = None,
    attentions: dict[int, Tensor] | None = None,
) -> RefusionState:
    """Rebuild the insertions' state from the rows of one chunk's placeholders.

    Args:
        model: A `VisionRememberModel`, or another with a method attached: its `refusion` says whether it needs whole images and guidance,
            its `config` names the control tokens, `max_views` is 1 where each image that the facts tell of is one view.
        image: What `get_image_features` made, perhaps repeated or sliced since; N rows in all.
        is_placeholder: bool[B, T], N of them True.
        input_ids: long[B, T], or None when the chunk came as embeddings.
        tokens_per_image: Vision tokens V of one image; None: as many as the projector makes by itself.
        attentions: Filled with attention weights by the insertions when given.

    Returns:
        The state. An image is a run of consecutive steps in one row of the batch; at any resolution each of its views counts as one.

    Raises:
        ValueError: The chunk cuts an image or its turn, and the method needs them whole, or the images have more tokens.
    """
    rows, facts = (torch.cat(list(tensors)).to(is_placeholder.device) for tensors in image.deepstack_features)
    num_slots = (facts.shape[1] - len(FACTS)) // 2
    valid, place, numbers = facts.split([num_slots, num_slots, len(FACTS)], dim=1)
    step, view, index, count = numbers.unbind(1)
    most = tokens_per_image or model.token_grid.num_cells
    torch_compilable_check(
        (count <= most).all(),
        lambda: (
            f"images of {int(count.max())} vision tokens, and tokens_per_image says {most}; give the number they were made with"
        ),
    )
    position = flat_positions(is_placeholder, len(rows))
    batch_row = position // is_placeholder.shape[1]
    starts = torch.ones_like(step, dtype=torch.bool)
    starts[1:] = (step[1:] != step[:-1] + 1) | (batch_row[1:] != batch_row[:-1])
    owner = starts.long().cumsum(0) - 1
    row_of_image = batch_row[starts]
    if model.max_views > 1:
        owns = count > 0
        rows, valid, place, index, count, position = (x[owns] for x in (rows, valid, place, index, count, position))
        of_view = owner * model.max_views + view
        groups, owner = of_view[owns].unique(return_inverse=True)
        row_of_image = row_of_image[groups // model.max_views]
    state = RefusionState(
        position=position,
        rows=rows,
        valid=valid.bool(),
        place=place,
        image=owner,
        index=index,
        count=count,
        batch_row=row_of_image,
        max_count=most,
        attentions=attentions,
    )
    if model.refusion.needs_whole_images:
        state.check_whole_images()
    if model.refusion.needs_guidance:
        state = dataclasses.replace(
            state, guidance=guiding_text(input_ids, is_placeholder.shape[1], state, model.config)
        )
    return state


def guiding_text(
    input_ids: Tensor | None, num_positions: int, state: RefusionState, config: VisionRememberConfig
) -> Tensor:
    """Where the user text of each image's own turn stands.

    Args:
        input_ids: long[B, T] of this chunk; embeddings alone do not tell turns apart.
        num_positions: T, the length of this chunk.
        state: Of this chunk.
        config: Names the control tokens.

    Returns:
        bool[I, T]: True on the text of the turn that holds the image; no header, no control token, no other turn.

    Raises:
        ValueError: The chunk does not hold the turn of an image from its opening to its end.
    """
    if len(state.position) == 0:
        return state.batch_row.new_zeros(0, num_positions, dtype=torch.bool)
    if input_ids is None:
        raise ValueError("guidance reads the user's turn from input_ids; pass ids instead of inputs_embeds")
    assert config.turn_start_token_id is not None and config.turn_end_token_id is not None
    opens, closes = input_ids == config.turn_start_token_id, input_ids == config.turn_end_token_id
    turn = opens.cumsum(1)  # number of the turn; 0 before the first
    place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    since_opening = place - (place * opens).cummax(1).values
    closed = closes.cumsum(1)
    is_closed = closed > (closed * opens).cummax(1).values
    is_text = (
        (turn > 0) & (since_opening > config.user_header_length) & ~is_closed & (input_ids != config.image_token_id)
    )

    first = torch.zeros_like(state.batch_row).scatter_(0, state.image.flip(0), state.position.flip(0))
    own_turn = turn[state.batch_row, first % input_ids.shape[1]]  # [I]
    in_turn = turn[state.batch_row] == own_turn[:, None]  # [I, T]
    is_whole = (own_turn > 0) & (in_turn & closes[state.batch_row]).any(1)
    torch_compilable_check(
        is_whole.all(),
        lambda: (
            f"image {int((~is_whole).nonzero()[0])} of this chunk stands apart from the opening or the end of its user turn, "
            "and guidance reads the whole turn; prefill in larger chunks, or build the prompt with the processor"
        ),
    )
    return in_turn & is_text[state.batch_row]
