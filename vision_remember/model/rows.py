"""The memory of vision tokens as rows that travel through `generate`, and back into the state the insertions need.

`generate` encodes images once, repeats the result for beams and slices it for chunked prefill. It knows two fields, `pooler_output` and
`deepstack_features`, and treats both as one row per placeholder token, in a list with one tensor per image. So everything an insertion
must know about a token is in its row: the memory itself in one tensor, and whole numbers (which slots are filled, where they lie, the
token's index in its image, the image's token count) in a second one, because bfloat16 cannot count past 256.

Source: `_expand_multimodal_outputs` and `_slice_mm_encoder_output` in transformers/generation/utils.py.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers.utils import torch_compilable_check

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.outputs import VisionRememberImageFeatures
from vision_remember.refusion import Memory, RefusionState, flat_positions


def pack(memory: Memory) -> list[list[Tensor]]:
    """Lay the memory of B images out as `deepstack_features`.

    Args:
        memory: Rows, filled slots and places of B images with V tokens each.

    Returns:
        Two lists of B tensors: `float[V, M]`, and `long[V, 2 W + 2]` with filled slots, places, index and count.
    """
    num_images, num_tokens, _ = memory.place.shape
    index = torch.arange(num_tokens, device=memory.place.device).expand(num_images, -1)
    facts = torch.cat(
        [memory.valid.long(), memory.place, torch.stack([index, torch.full_like(index, num_tokens)], dim=-1)], dim=-1
    )
    return [list(memory.rows.unbind()), list(facts.unbind())]


def without_rows(image: VisionRememberImageFeatures) -> VisionRememberImageFeatures:
    """The same images without a single row: what uses every parameter of the insertions and changes nothing."""
    if image.deepstack_features is None:
        return image
    rows = [[tensor[:0] for tensor in tensors] for tensors in image.deepstack_features]
    return VisionRememberImageFeatures(pooler_output=image.pooler_output, deepstack_features=rows)


def check_counts(is_placeholder: Tensor, num_tokens: int, tokens_per_image: int) -> None:
    """Refuse a chunk whose placeholders and vision tokens disagree.

    Args:
        is_placeholder: bool[B, T].
        num_tokens: Vision tokens given.
        tokens_per_image: For the message.

    Raises:
        ValueError: With both counts.
    """
    torch_compilable_check(
        is_placeholder.sum() == num_tokens,
        lambda: (
            f"{int(is_placeholder.sum())} image placeholders in input_ids, {num_tokens} vision tokens given "
            f"({tokens_per_image} per image); build ids and pixels with the processor, and never cut an image when truncating"
        ),
    )


def state_of_chunk(
    model: Any,
    image: VisionRememberImageFeatures,
    is_placeholder: Tensor,
    input_ids: Tensor | None,
    *,
    attentions: dict[int, Tensor] | None = None,
) -> RefusionState:
    """Rebuild the insertions' state from the rows of one chunk's placeholders.

    Args:
        model: A `VisionRememberModel`: its method says whether it needs whole images and guidance, its config names the control tokens.
        image: What `get_image_features` made, perhaps repeated or sliced since; N rows in all.
        is_placeholder: bool[B, T], N of them True.
        input_ids: long[B, T], or None when the chunk came as embeddings.
        attentions: Filled with attention weights by the insertions when given.

    Returns:
        The state. An image is a run of consecutive indices in one row of the batch.

    Raises:
        ValueError: The chunk cuts an image or its turn, and the method needs them whole.
    """
    rows, facts = (torch.cat(list(tensors)).to(is_placeholder.device) for tensors in image.deepstack_features)
    num_slots = (facts.shape[1] - 2) // 2
    valid, place, index, count = facts.split([num_slots, num_slots, 1, 1], dim=1)
    index, count = index.squeeze(1), count.squeeze(1)
    position = flat_positions(is_placeholder, len(rows))
    batch_row = position // is_placeholder.shape[1]
    starts = torch.ones_like(index, dtype=torch.bool)
    starts[1:] = (index[1:] != index[:-1] + 1) | (batch_row[1:] != batch_row[:-1])
    state = RefusionState(
        position=position,
        rows=rows,
        valid=valid.bool(),
        place=place,
        image=starts.long().cumsum(0) - 1,
        index=index,
        count=count,
        batch_row=batch_row[starts],
        max_count=model.token_grid.num_cells,
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
