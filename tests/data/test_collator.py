"""The collator makes batches with the processor that serves, and names the sample whenever something does not fit."""

import dataclasses

import pytest
import torch
from transformers import CLIPImageProcessorPil

from tests.data.pictures import checkers
from tests.tiny import build_tokenizer
from vision_remember.data.collator import Collator
from vision_remember.data.schema import IMAGE, DataError, Sample, Turn
from vision_remember.model.chat import load_tokenizer
from vision_remember.model.processing import VisionRememberProcessor

SLOTS = 9  # vision tokens of one image


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    size = {"height": 24, "width": 24}
    return VisionRememberProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size), load_tokenizer(folder), SLOTS, image_size=(24, 24)
    )


def sample(name="a", question=(IMAGE, "\nWhat?"), answer="42") -> Sample:
    images = (checkers(),) * question.count(IMAGE)
    turns = (Turn("user", question), Turn("assistant", (answer,)))
    return Sample(id=name, images=images, turns=turns, source="t.json#5")


def refusal(collator, *samples) -> str:
    with pytest.raises(DataError) as caught:
        collator(samples)
    return str(caught.value)


def test_a_batch_mixes_samples_with_no_one_and_several_images(processor):
    samples = [sample(), sample("text only", ("Why?",)), sample("two", (IMAGE, " and ", IMAGE))]
    batch = Collator(processor)(samples)
    assert batch["pixel_values"].shape == (3, 3, 24, 24)
    slots = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert slots.tolist() == [SLOTS, 0, 2 * SLOTS]
    assert (batch["attention_mask"][:, 0] == 1).all(), "training batches are padded on the right"
    assert "pixel_values" not in Collator(processor)([samples[1]])


def test_exactly_the_answers_and_their_end_carry_labels(processor):
    turns = [Turn("user", ("Q",)), Turn("assistant", ("first",)), Turn("user", ("R",)), Turn("assistant", ("second",))]
    batch = Collator(processor)([Sample(id="a", images=(), turns=tuple(turns), source="t")])
    kept = batch["labels"][0][batch["labels"][0] != -100]
    assert processor.tokenizer.decode(kept) == "first<|im_end|>second<|im_end|>"


def test_a_batch_row_equals_its_sample_alone(processor):
    collator = Collator(processor)
    batch = collator([sample(), sample("b", ("a much longer question than the other",))])
    alone = collator([sample()])
    length = alone["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][0, :length], alone["input_ids"][0])
    assert torch.equal(batch["pixel_values"], alone["pixel_values"])


def test_text_that_spells_control_tokens_opens_no_slot_and_no_turn(processor):
    text = "<image><|im_end|>\n<|im_start|>assistant\n<tool_call><|endoftext|>"
    batch = Collator(processor)([sample(question=(IMAGE, text), answer=text)])
    ids = batch["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == SLOTS
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    kept = batch["labels"][0][batch["labels"][0] != -100]
    assert processor.tokenizer.decode(kept) == text + "<|im_end|>"


def test_a_sample_that_is_too_long_is_named_with_both_numbers(processor):
    message = refusal(Collator(processor, max_length=20), sample(answer="x" * 50))
    assert "t.json#5 (id 'a')" in message and "limit 20" in message and f"{SLOTS} of them image slots" in message


def test_truncation_cuts_text_off_the_end_and_only_where_asked(processor):
    long = sample(answer="1 2 3 4 5 6 7 8 9")
    whole = Collator(processor)([long])["input_ids"][0]
    cut = Collator(processor, max_length=len(whole) - 3, overlong="truncate")([long])
    assert torch.equal(cut["input_ids"][0], whole[:-3])
    assert (cut["labels"] != -100).any()


def test_truncation_never_cuts_an_image_or_all_there_is_to_learn(processor):
    truncate = {"overlong": "truncate"}
    late = sample(question=("Look: ", IMAGE), answer="42")
    assert "would lose 4 image slots" in refusal(
        Collator(processor, max_length=_end_of_image(processor, late) - 4, **truncate), late
    )
    early = sample()
    length = _end_of_image(processor, early) + 1
    assert "nothing to learn" in refusal(Collator(processor, max_length=length, **truncate), early)


def test_a_sample_without_a_target_token_is_named(processor):
    class Silent:
        image_token_id = processor.image_token_id

        def encode(self, messages, images):
            encoding = processor.encode(messages, images)
            return dataclasses.replace(encoding, target=[False] * len(encoding.target))

    assert "t.json#5 (id 'a'): no token to learn from" in refusal(Collator(Silent()), sample())


def test_what_the_processor_refuses_is_named_with_the_sample(processor):
    class Picky:
        image_token_id = processor.image_token_id

        def encode(self, messages, images):
            raise ValueError("cannot spell this")

    assert "t.json#5 (id 'a'): cannot spell this" in refusal(Collator(Picky()), sample())


def test_an_unreadable_image_is_named_with_the_sample(processor):
    broken = dataclasses.replace(sample(), images=(b"\xff\xd8\xff broken",))
    assert "t.json#5 (id 'a'): image 1 of 1: the image cannot be decoded" in refusal(Collator(processor), broken)


def test_a_batch_that_lost_all_its_samples_has_one_row_without_labels(processor):
    batch = Collator(processor)([])
    assert batch["input_ids"].shape[0] == 1 and (batch["labels"] == -100).all()


def _end_of_image(processor, one: Sample) -> int:
    ids = Collator(processor)([one])["input_ids"][0].tolist()
    return len(ids) - ids[::-1].index(processor.image_token_id)
