"""Pages as tokens of several characters: the second part of the language model's pretraining, and what projectors learn to say.

A real language model reads pieces of words and can spell them; one that has only met single characters takes a token of nine for noise.
So after the drills the embedded one goes on with pages whose characters are packed: a token stands for a square of cells, the sum of
their embeddings, each turned by a matrix of its place in the square, and tells where the square stands, as encoder features do.

    cells [B, 12, 12] -> embeddings [B, 12, 12, D] -> turned and summed by squares [B, V, D] -> the size of a text embedding

The matrices of the first column start as the identity: what the model knows of single characters then holds for the first one of a
square. With random matrices everywhere the look-up did not move for 400 steps.

First it reads and answers, then it practises: a table's cell takes two look-ups and a comparison three, and both are plateaus until their
parts are asked for too, which the exercises of a page do.

`python -m vision_remember.foundation.packed_pages` prints how many questions the shipped model answers, teacher-forced, per square.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from vision_remember.data.synthetic.canvas import LINE, SIDE
from vision_remember.data.synthetic.pages import Page, make_page
from vision_remember.data.synthetic.samples import READ_ALL
from vision_remember.foundation.chat import Chat, encode, pad, spell
from vision_remember.foundation.fit import Schedule, fit
from vision_remember.model.embedded import model_path

SQUARES = {1: 16, 2: 24, 3: 40, 4: 40}  # side of a square: pages in a batch
LARGEST = max(SQUARES)
PLACE_STD = 0.04


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the pretraining.

    Attributes:
        name: Of its run folder.
        schedule: Steps and rates.
        first_page: Number of its first page: no page comes twice.
        squares: Share of the batches by side.
        families: Share of the pages.
        reading_only: Steps in which pages are only read out; asked for at once, spelling and look-up are a plateau.
        read_out: Share of the pages that are read out before questions are asked, after that.
        practised: Share of the pages whose exercises are asked for too.
        level: Of the exercises.
    """

    name: str
    schedule: Schedule
    first_page: int
    squares: Mapping[int, float]
    families: Mapping[str, float]
    reading_only: int = 0
    read_out: float = 0.0
    practised: float = 0.0
    level: int = 1


READING = Part(
    name="packed_pages",
    schedule=Schedule(steps=3000, learning_rate=1e-3, warmup=50),
    first_page=1_000_000,  # numbers that the drills' pages have not used
    squares={1: 0.25, 2: 0.15, 3: 0.45, 4: 0.15},
    families={"table": 0.35, "chart": 0.25, "text": 0.2, "form": 0.15, "layout": 0.05},
    reading_only=200,
    read_out=0.25,
)
PRACTICE = Part(
    name="practice",
    schedule=Schedule(steps=1100, falls_until=2400, learning_rate=1e-3, muon_rate=0.01, warmup=50),
    first_page=2_000_000,
    squares={1: 0.25, 2: 0.1, 3: 0.5, 4: 0.15},
    families={"table": 0.37, "chart": 0.33, "text": 0.15, "form": 0.1, "layout": 0.05},
    read_out=0.1,
    practised=0.6,
)
HARDER_PRACTICE = replace(
    PRACTICE,
    name="harder_practice",
    schedule=Schedule(steps=2000, learning_rate=1e-3, muon_rate=0.01, warmup=50),
    first_page=3_000_000,
    level=2,
)
PARTS = (READING, PRACTICE, HARDER_PRACTICE)


class Packing(nn.Module):
    """Turns the embeddings of a page's cells into tokens of `side` x `side` cells.

    Args:
        width: D of the language model.
        size: Root mean square that tokens are brought to, that of a text embedding.
    """

    size: Tensor

    def __init__(self, width: int, size: float) -> None:
        super().__init__()

        def turn() -> Tensor:
            return nn.init.orthogonal_(torch.empty(width, width))

        first = torch.stack([torch.eye(width), *(turn() for _ in range(LARGEST - 1))])
        # Lines are three cells apart: only a square of four rows can hold two of them, which then differ by one more turn.
        rows = [first] * LINE + [first @ turn()] * (LARGEST - LINE)
        self.turn = nn.Parameter(torch.stack(rows))  # [row, column, D, D]
        self.row = nn.Parameter(PLACE_STD * torch.randn(SIDE, width))
        self.column = nn.Parameter(PLACE_STD * torch.randn(SIDE, width))
        self.register_buffer("size", torch.tensor(size))

    def forward(self, cells: Tensor, is_blank: Tensor, side: int) -> Tensor:
        """cells float[B, 144, D], is_blank bool[B, 144] -> tokens float[B, (12 / side)^2, D]; a square of one keeps its blanks."""
        squares = SIDE // side
        if side > 1:
            cells = cells * ~is_blank[..., None]
        cells = cells.view(-1, squares, side, squares, side, cells.shape[-1])
        place = self.row[::side, None] + self.column[None, ::side]
        if side == 1:
            tokens = cells[:, :, 0, :, 0] + place
        else:
            tokens = torch.einsum("bisjtd,stde->bije", cells, self.turn[:side, :side]) + place
        return nn.functional.rms_norm(tokens.flatten(1, 2), tokens.shape[-1:]) * self.size

    def save(self, folder: Path) -> None:
        """Writes `folder / "model.safetensors"`."""
        folder.mkdir(exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


class PackedReader(nn.Module):
    """The language model with a packing before it, which is dropped after pretraining."""

    def __init__(self, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        embeddings = model.get_input_embeddings().weight.detach()
        self.model = model
        self.packing = Packing(embeddings.shape[1], embeddings.pow(2).mean(dim=1).sqrt().median().item())
        self.blank = spell(tokenizer, " ")[0]

    def tokens(self, cells: Tensor, side: int) -> Tensor:
        """Token ids of the cells, int64[B, 144] -> float[B, (12 / side)^2, D]."""
        return self.packing(self.model.get_input_embeddings()(cells), cells == self.blank, side)

    def forward(self, ids: Tensor, cells: Tensor, side: int) -> Tensor:
        """ids int64[B, T], -1 where the page's tokens go -> hidden float[B, T, D]."""
        embedded = self.model.get_input_embeddings()(ids.clamp(min=0))
        embedded = embedded.masked_scatter((ids < 0)[..., None], self.tokens(cells, side))
        return self.model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state


def pretrain_on_packed_pages(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int
) -> PackedReader:
    """Trains `model` in place, in `PARTS`; resumes from `folder`.

    Args:
        model: After the drills of `language_model.py`.
        tokenizer: Its tokenizer.
        folder: Of the runs.
        seed: Of packing and pages.

    Returns:
        The model with its packing, which projectors are pretrained to imitate.
    """
    torch.manual_seed(seed)
    reader = PackedReader(model, tokenizer)

    def loss(part: Part, step: int) -> tuple[Tensor, dict[str, float]]:
        side, ids, labels, cells = _batch(tokenizer, part, seed, step)
        # Half precision in the matrix products alone: a quarter less time where the CPU has it, the same curve.
        with torch.autocast("cpu", torch.bfloat16):
            hidden = reader(ids, cells, side)[:, :-1]
            truth = labels[:, 1:]
            chosen = truth != -100
            guesses, truth = model.lm_head(hidden[chosen]), truth[chosen]
            right = (guesses.argmax(-1) == truth).float().mean().item()
            return nn.functional.cross_entropy(guesses, truth), {"right": right, "side": side}

    for part in PARTS:
        title = f"language model, {part.name.replace('_', ' ')}"
        fit(reader, partial(loss, part), part.schedule, folder / f"{part.name}_run", title)
    return reader


@torch.no_grad()
def right_answers(
    reader: PackedReader, tokenizer: PreTrainedTokenizerFast, family: str, side: int, *, count: int = 100
) -> float:
    """The share of answers whose every token is the likeliest one after the right tokens before it, on `count` unseen pages."""
    rng = random.Random(0)
    pages = [make_page(family, "test", 0, index) for index in range(count)]
    chats = [_chat(page, tokenizer, rng, side) for page in pages]
    ids, labels = pad(chats, tokenizer.pad_token_id)
    guesses = reader.model.lm_head(reader(ids, _cells(pages, tokenizer), side)[:, :-1]).argmax(-1)
    is_target = labels[:, 1:] != -100
    # Answers are runs of targets: number them, and a run is right if none of its tokens is wrong.
    starts = is_target & ~nn.functional.pad(is_target, (1, 0))[:, :-1]
    answer = starts.flatten().cumsum(0)[is_target.flatten()] - 1
    wrong = (guesses != labels[:, 1:])[is_target]
    return 1 - len(answer[wrong].unique()) / int(starts.sum())


def _batch(tokenizer: PreTrainedTokenizerFast, part: Part, seed: int, step: int) -> tuple[int, Tensor, Tensor, Tensor]:
    """Side of the squares; ids and labels int64[B, T], right-padded; the cells of the pages as ids, int64[B, 144]."""
    rng = random.Random(f"{seed}/{part.name}/{step}")
    side = rng.choices([*part.squares], [*part.squares.values()])[0]
    is_reading = step < part.reading_only
    shares = [0 if is_reading and family == "layout" else share for family, share in part.families.items()]
    pages = [
        make_page(rng.choices([*part.families], shares)[0], "train", seed, part.first_page + 64 * step + place)
        for place in range(SQUARES[side])
    ]
    read_out, practised = (1.0, 0.0) if is_reading else (part.read_out, part.practised)
    chats = [
        _chat(page, tokenizer, rng, side, read_out, practised, part.level, is_asked=not is_reading) for page in pages
    ]
    ids, labels = pad(chats, tokenizer.pad_token_id)
    return side, ids, labels, _cells(pages, tokenizer)


def _cells(pages: Sequence[Page], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Token ids of the cells, int64[B, 144]."""
    return torch.tensor([spell(tokenizer, "".join(page.text)) for page in pages])


def _chat(
    page: Page,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    side: int,
    read_out: float = 0.0,
    practised: float = 0.0,
    level: int = 1,
    *,
    is_asked: bool = True,
) -> Chat:
    """The page read out, questioned, or both; -1 stands for each token of the page."""
    asked = rng.sample(page.questions, len(page.questions))
    if practised and rng.random() < practised:
        exercises = [question for question in page.exercises if question.level == level]
        asked = [*rng.sample(exercises, min(4, len(exercises))), *asked[:4]]
        rng.shuffle(asked)
    turns = [(question.question, question.answer) for question in asked[: 5 if side == 1 else 7]]
    if page.transcript and rng.random() < read_out:
        turns = [(READ_ALL, page.transcript), *(turns[:4] if is_asked else [])]
    chat = Chat(tokenizer)
    for place, (question, answer) in enumerate(turns):
        head: Sequence[int] = [-1] * (SIDE // side) ** 2 + encode(tokenizer, "\n") if place == 0 else []
        chat.turn([*head, *encode(tokenizer, question)], encode(tokenizer, answer))
    return chat


def main() -> None:
    """Prints the share of right answers of the shipped language model, in %."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path("embedded/language_model"))
    model = Qwen2ForCausalLM.from_pretrained(model_path("embedded/language_model"))
    reader = PackedReader(model, tokenizer).eval()
    reader.packing.load_state_dict(load_file(Path(model_path("embedded/packing")) / "model.safetensors"))
    for side in SQUARES:
        found = {family: round(100 * right_answers(reader, tokenizer, family, side)) for family in READING.families}
        print(f"{side} x {side} cells a token:", ", ".join(f"{family} {right}" for family, right in found.items()))


if __name__ == "__main__":
    main()
