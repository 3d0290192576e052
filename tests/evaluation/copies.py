"""Local copies of every benchmark, three questions each, with the columns their data sets on the Hub have."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

TEN = ["red"] * 4 + ["dark red"] * 6
ROWS: dict[str, list[dict[str, Any]]] = {
    "gqa": [{"id": f"g{n}", "imageId": f"n{n % 2}", "question": "Is it red?", "answer": "yes"} for n in range(3)],
    "textvqa": [
        {"question_id": n, "image_id": f"i{n % 2}", "question": "what is WRITTEN?", "answers": TEN} for n in range(3)
    ],
    "vqav2": [
        {
            "question_id": n,
            "image_id": n // 2,
            "question": "Which colour?",
            "answer_type": ("other", "number")[n % 2],
            "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(TEN)],
        }
        for n in range(3)
    ],
    "docvqa": [{"questionId": str(n), "docId": 7, "question": "Total?", "answers": ["$ 42", "42"]} for n in range(3)],
    "infovqa": [{"questionId": str(n), "question": "How many?", "answers": ["12"]} for n in range(3)],
    "chartqa": [
        {"type": ("human_test", "augmented_test")[n % 2], "question": "Value?", "answer": "40"} for n in range(3)
    ],
    "ocrbench": [
        {
            "dataset": ("IIIT5K", "HME100k")[n % 2],
            "question": "what is written?",
            "question_type": ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition")[n % 2],
            "answer": ["x ^ 2"],
        }
        for n in range(3)
    ],
    "ai2d": [{"question": "Which part?", "options": ["leaf", "root"], "answer": "1"} for n in range(3)],
    "mmbench": [
        {
            "index": index,
            "question": "What is it?",
            "hint": hint,
            "category": "object",
            "answer": answer,
            "A": first,
            "B": second,
            "C": "nan",
            "D": "nan",
        }
        for index, hint, answer, first, second in (
            (5, "nan", "A", "a dog", "a cat"),
            (1_000_005, "nan", "B", "a cat", "a dog"),
            (6, "Look well.", "A", "a pan", "a pot"),
        )
    ],
    "pope": [
        {
            "id": str(n),
            "question_id": str(n),
            "question": "Is there a dog in the image?",
            "answer": ("yes", "no")[n % 2],
            "image_source": f"COCO_{n // 2}",
            "category": "random",
        }
        for n in range(3)
    ],
    "mme": [
        {
            "question_id": f"{category}/1.png",
            "category": category,
            "answer": answer,
            "question": "Is it a dog? Please answer yes or no.",
        }
        for category in ("existence", "code_reasoning")
        for answer in ("Yes", "No")
    ],
    "mmstar": [
        {
            "index": n,
            "question": "Which?\nOptions: A: one, B: two",
            "answer": "B",
            "category": "math",
            "l2_category": ("geometry", "statistics")[n % 2],
        }
        for n in range(3)
    ],
}


def picture(colour: str = "red") -> bytes:
    """A small PNG."""
    with io.BytesIO() as buffer:
        Image.new("RGB", (6, 6), colour).save(buffer, format="PNG")
        return buffer.getvalue()


def write_json(folder: Path, name: str) -> Path:
    """Writes a benchmark as `rows.json` with picture files."""
    (folder / "images").mkdir(parents=True)
    records = []
    for number, row in enumerate(ROWS[name]):
        own = {} if "imageId" in row else {"image": f"{number}.png"}
        (folder / "images" / f"{row.get('imageId', number)}.png").write_bytes(picture())
        records.append({**row, **own})
    (folder / "rows.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def write_tsv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in VLMEvalKit's layout; the second picture is given by the index of the first row."""
    folder.mkdir(parents=True)
    encoded = base64.b64encode(picture()).decode()
    with (folder / "rows.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["index", *rows[0], "image"], delimiter="\t")
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({"index": number, **row, "image": "0" if number == 1 else encoded})
    return folder
