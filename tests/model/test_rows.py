import torch

from tests.model.conftest import V2, answered, ask, page
from vision_remember.model.rows import pack, state_of_chunk
from vision_remember.refusion import Memory

TURNS = [
    [
        {"role": "system", "content": "Be brief."},
        *answered("What is the total?", "forty two", page(1)),
        *ask("And here, on both?", page(2), page(3)),
    ],
    ask("", page(4)),
]


def test_whole_numbers_of_a_row_are_exact_beside_bfloat16_features():
    memory = Memory(
        rows=torch.zeros(1, 400, 6, dtype=torch.bfloat16),
        valid=torch.ones(1, 400, 2, dtype=torch.bool),
        place=torch.zeros(1, 400, 2, dtype=torch.long),
    )
    _, [facts] = pack(memory)
    assert facts[:, -2].tolist() == list(range(400))
    assert facts[:, -1].unique().tolist() == [400]


def test_guidance_is_the_user_text_of_the_images_own_turn(build, processor):
    model = build(V2)
    batch = processor.pad([processor.encode(turns) for turns in TURNS], side="left")
    ids = batch["input_ids"]
    image = model.get_image_features(batch["pixel_values"])
    state = state_of_chunk(model.model, image, ids == processor.image_token_id, ids)
    said = [
        processor.tokenizer.decode(ids[row][mask]) for row, mask in zip(state.batch_row, state.guidance, strict=True)
    ]
    assert said == ["What is the total?", "And here, on both?", "And here, on both?", ""]
    assert state.batch_row.tolist() == [0, 0, 0, 1]
    assert state.index.tolist() == [0, 1, 2, 3] * 4
    assert state.image.tolist() == [image for image in range(4) for _ in range(4)]


def test_an_answer_or_a_later_turn_never_reaches_the_guided_token(build, processor):
    """Changing what comes after the image's turn leaves the logits inside that turn as they are, bit for bit."""
    from tests.model.conftest import stir

    model = stir(build(V2))
    head = ask("What is the total?", page(1))
    one, other = (
        processor.pad([processor.encode([*head, {"role": "assistant", "content": answer}, *ask(later)])], side="right")
        for answer, later in (("42", "1 2 3"), ("17", "3 2 1"))
    )
    assert one["input_ids"].shape == other["input_ids"].shape
    length = len(processor.encode(head, add_generation_prompt=True).input_ids)
    assert torch.equal(model(**one).logits[:, :length], model(**other).logits[:, :length])
