"""The embedded tokenizer: a small byte-level BPE with ChatML tokens, trained on the questions of the synthetic documents.

Capital letters and digits are always tokens of their own, as digits are in Qwen2: what stands on a page is spelt, what people ask is in
pieces. Bytes are the alphabet, so any text can be written and read back.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vision_remember.data.synthetic.content import LABELS
from vision_remember.data.synthetic.pages import families, make_page

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 512


def build_tokenizer(seed: int, pages: int = 400) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the questions of `pages` train pages of every family."""
    tokenizer = Tokenizer(models.BPE())
    spelt = pre_tokenizers.Split(Regex("[A-Z0-9]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spelt, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=list(CHATML),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, pages), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=1024,
    )


def _corpus(seed: int, pages: int) -> list[str]:
    chat = ["user", "assistant", "yes", "no"] * 100
    names = [label.title() for label in LABELS] * 20
    asked = [
        question.question
        for family in families()
        for index in range(pages)
        for question in make_page(family, "train", seed, index).questions
    ]
    answers = ["top left", "top right", "bottom left", "bottom right", "circle", "square", "triangle"] * 50
    return chat + names + asked + answers + ["red", "green", "blue", "orange", "purple"] * 50
