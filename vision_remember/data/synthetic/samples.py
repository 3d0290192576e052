"""Synthetic pages as the samples everything else consumes: a lazy list in memory, or a LLaVA JSON folder on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vision_remember.data.schema import IMAGE, Sample, Turn
from vision_remember.data.synthetic.pages import Page, families, make_page
from vision_remember.data.synthetic.question import Question

READ_ALL = "Read the page."


class SyntheticSamples:
    """A lazy list of samples: page i is drawn when it is asked for, and families take turns.

    Args:
        count: number of pages.
        split: `train`, `test` (unseen content) or `shift` (unseen content, fonts and sizes).
        seed: of the set.
        families: names, None for all.
        questions: the most questions kept of a page, in an order fixed by its number; None keeps all.
        transcript: ask for all that is written on the page first, where something is: dense targets, as captions are.

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
        transcript: bool = False,
    ) -> None:
        self.count, self.split, self.seed, self.questions, self.transcript = count, split, seed, questions, transcript
        self.families = _known(families)

    @property
    def fingerprint(self) -> str:
        """The name of this set; the same name draws the same pages."""
        return f"synthetic:{self.split}:{self.seed}:{self.count}:{self.questions}:{self.transcript}:{','.join(self.families)}"

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
        if self.transcript and page.transcript:
            asked = [Question(READ_ALL, page.transcript, (0, 0, *page.image.size)), *asked]
        turns: list[Turn] = []
        for question in asked:
            parts = (question.question,) if turns else (IMAGE, f"\n{question.question}")
            turns += [Turn("user", parts), Turn("assistant", (question.answer,))]
        return Sample(
            id=page.id,
            images=(page.image,),
            turns=tuple(turns),
            source=self.fingerprint,
            family=page.family,
            evidence=tuple(question.evidence for question in asked),
        )


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
