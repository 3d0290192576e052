"""Synthetic pages as the samples everything else consumes: a lazy list in memory, or a LLaVA JSON folder on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from vision_remember.data.schema import IMAGE, Sample, Turn
from vision_remember.data.synthetic.pages import Page, families, make_page
from vision_remember.data.synthetic.question import Question

READ_ALL, READ_CELLS = "Read the page.", "Read every cell."
Transcript = Literal["lines", "cells"]


class SyntheticSamples:
    """A lazy list of samples: page i is drawn when it is asked for, and families take turns.

    Args:
        count: number of pages.
        split: `train`, `test` (unseen content) or `shift` (unseen content, fonts and sizes).
        seed: of the set.
        families: names, None for all.
        questions: the most questions kept of a page, in an order fixed by its number; None keeps all.
        transcript: ask for the whole page first: its written lines, where it has any, or what stands in each of its cells. Dense targets,
            as captions are.
        as_text: put the page's cells as characters in the place of its image: look-up without pixels.

    Raises:
        ValueError: an unknown family, with the known ones.
    """

    def __init__(
        self,
        count: int,
        *,
        split: str,
        seed: int,
        families: Sequence[str] | None = None,
        questions: int | None = None,
        transcript: Transcript | None = None,
        as_text: bool = False,
    ) -> None:
        self.count, self.split, self.seed, self.questions = count, split, seed, questions
        self.transcript, self.as_text = transcript, as_text
        self.families = _known(families)

    @property
    def fingerprint(self) -> str:
        """The name of this set; the same name draws the same pages."""
        facts = (
            self.split,
            self.seed,
            self.count,
            self.questions,
            self.transcript,
            self.as_text,
            ",".join(self.families),
        )
        return ":".join(["synthetic", *map(str, facts)])

    def __len__(self) -> int:
        return self.count

    def page(self, index: int) -> Page:
        """The page behind sample `index`."""
        return make_page(self.families[index % len(self.families)], self.split, self.seed, index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"page {index} of {self.count}")
        page = self.page(index)
        first = index // len(self.families) % len(page.questions)
        asked = (page.questions[first:] + page.questions[:first])[: self.questions]
        asked = [*self._whole(page), *asked]
        shown = "".join(page.text) if self.as_text else IMAGE
        turns: list[Turn] = []
        for question in asked:
            parts = (question.question,) if turns else (shown, f"\n{question.question}")
            turns += [Turn("user", parts), Turn("assistant", (question.answer,))]
        return Sample(
            id=page.id,
            images=() if self.as_text else (page.image,),
            turns=tuple(turns),
            source=self.fingerprint,
            family=page.family,
            evidence=tuple(question.evidence for question in asked),
        )

    def _whole(self, page: Page) -> list[Question]:
        """The question for the whole page, if it is to be asked."""
        box = (0, 0, *page.image.size)
        if self.transcript == "cells":
            return [Question(READ_CELLS, "".join(page.text), box)]
        return [Question(READ_ALL, page.transcript, box)] if self.transcript and page.transcript else []


def write_dataset(samples: SyntheticSamples, out: Path) -> Iterable[str]:
    """Writes `out/data.json` in LLaVA's layout and `out/images/*.png`; yields each id as it is written.

    Raises:
        ValueError: `out` already holds a data set.
    """
    if (out / "data.json").exists():
        raise ValueError(f"{out / 'data.json'} exists: give --out a new folder")
    (out / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for sample in map(samples.__getitem__, range(len(samples))):
        name = f"images/{sample.id}.png"
        sample.load_images()[0].save(out / name)
        records.append({"id": sample.id, "image": name, "conversations": _conversations(sample), **_extras(sample)})
        yield sample.id
    (out / "data.json").write_text(json.dumps(records, indent=1), encoding="utf-8")


def _conversations(sample: Sample) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt"}
    return [
        {
            "from": names[turn.role],
            "value": "".join(part if isinstance(part, str) else "<image>" for part in turn.parts),
        }
        for turn in sample.turns
    ]


def _extras(sample: Sample) -> dict[str, object]:
    return {"family": sample.family, "evidence": [list(box) for box in sample.evidence or ()]}


def _known(names: Sequence[str] | None) -> list[str]:
    for name in names or ():
        if name not in families():
            raise ValueError(f"unknown family {name!r}: use one of {', '.join(families())}")
    return list(names or families())
