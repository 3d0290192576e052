"""Another model's own chat template, kept when its checkpoint is converted: the ids of `transformers`, and still no forged control token.

A Jinja template writes one string in which the control tokens of the template and the words of a user look alike. To tell them apart the
conversation is rendered twice, once with a mark in place of every text; what stands between the marks is the template's own. The string
is then encoded as `transformers` encodes it, so the ids are the same. Where a control token came out of a user's words, the pieces
between the template's own control tokens are encoded again by a tokenizer that knows no control token. Where a template marks a role with
plain words (Vicuna's `USER:`, Mistral's `[INST]`), no rule about ids tells them from the same words of a user.

Two liberties are taken. LLaVA's data layout writes a line break between images and words, and LLaVA's templates write it too; where the
template does, a line break that opens the text after an image is left out instead of doubled. And where the template lets a finished
conversation end with the assistant's words (Vicuna's), they are followed by the end token, as in LLaVA's own training; a prompt never is.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from vision_remember.model.chat import (
    IMAGE_TOKEN,
    Messages,
    TokenizedChat,
    encode_as_text,
    read_message,
    token_id,
    without_added_tokens,
)

MARK = re.compile("\ue000(\\d+)\ue001")  # private use: no template writes them


@dataclass(frozen=True)
class Piece:
    """A token and the span of the rendered string that it stands for."""

    id: int
    start: int
    end: int


class KeptTemplate:
    """Turns messages into ids by a Jinja template; the same doors as `chat.ChatTemplate`.

    Args:
        tokenizer: The checkpoint's own; knows the image token.
        chat_template: Jinja.
        num_image_tokens: Placeholders that stand for one image.

    Raises:
        ValueError: The template does not place one image slot and the text of a simple question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str, num_image_tokens: int):
        self.num_image_tokens = num_image_tokens
        self._tokenizer, self._chat_template = tokenizer, chat_template
        self.image_token_id = token_id(tokenizer, IMAGE_TOKEN)
        self.end_id, self.pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        # Some tokenizers keep runs of blanks as added tokens; those are words like any other.
        added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self._control_ids = {*added, *tokenizer.all_special_ids}
        self._spelling = without_added_tokens(tokenizer)
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\ue0000\ue001"}]}]
        before, image, between = MARK.split(self._render(question, {"add_generation_prompt": True}))[0].rpartition(
            IMAGE_TOKEN
        )
        if not image or IMAGE_TOKEN in before:
            raise ValueError(
                f"this chat template places no {IMAGE_TOKEN} before the words of a question with one image; only templates that do are kept"
            )
        self._breaks_after_image = "\n" in between

    def encode_text(self, text: str) -> list[int]:
        """Encode text as ordinary text, whatever it spells."""
        return encode_as_text(self._spelling, self._control_ids, text)

    def encode(
        self, messages: Messages, *, add_generation_prompt: bool = False, continue_final_message: bool = False
    ) -> TokenizedChat:
        """Encode one conversation; as `chat.ChatTemplate.encode`.

        Raises:
            ValueError: A message is malformed, or the template drops an image or rewrites a text.
        """
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        num_images = sum(part is None for n, message in enumerate(messages) for part in read_message(message, n)[1])
        rendered, texts, spans = self._rendered(messages, options)
        if len({number for *_, number in spans}) < len(texts):
            # LLaVA's templates read parts alone and pass over a content that is a string.
            rendered, texts, spans = self._rendered([_in_parts(message) for message in messages], options)
        if unsaid := set(range(len(texts))) - {number for *_, number in spans}:
            raise ValueError(
                f"the chat template leaves out {texts[min(unsaid)][0]!r}; such a turn has no place in this model's prompts"
            )
        said = [(start, end) for start, end, number in spans if texts[number][1]]
        if said and not any(options.values()) and not rendered[(end := said[-1][1]) :].strip():
            rendered = rendered[:end] + self._tokenizer.eos_token  # without an end, no model learns to stop
        pieces = self._pieces(rendered, [(start, end) for start, end, _ in spans])
        if (found := sum(piece.id == self.image_token_id for piece in pieces)) != num_images:
            raise ValueError(f"the chat template places {found} of the {num_images} images of this conversation")
        ids: list[int] = []
        target: list[bool] = []
        for before, piece in zip([None, *pieces[:-1]], pieces, strict=True):
            is_said = any(piece.start < end and piece.end > start for start, end in said)
            if before is not None and target[-1] and before.id not in self._control_ids and not is_said:
                is_said = piece.id in self._control_ids  # the token that ends an answer
            count = self.num_image_tokens if piece.id == self.image_token_id else 1
            ids += [piece.id] * count
            target += [is_said] * count
        return TokenizedChat(input_ids=ids, target=target, num_images=num_images)

    def _rendered(
        self, messages: Messages, options: dict[str, Any]
    ) -> tuple[str, list[tuple[str, bool]], list[tuple[int, int, int]]]:
        """The conversation as a string, its texts with whether the assistant says them, and where they stand (`_spans`)."""
        texts: list[tuple[str, bool]] = []
        plain, marked = ([self._reduced(message, sink) for message in messages] for sink in (None, texts))
        rendered = self._render(plain, options)
        return rendered, texts, list(_spans(rendered, self._render(marked, options), [text for text, _ in texts]))

    def _reduced(self, message: dict, texts: list[tuple[str, bool]] | None) -> dict:
        """A message without its pixels; with `texts`, every text is put there and leaves its mark."""
        is_answer = message["role"] == "assistant"

        def kept(text: str) -> str:
            if texts is None or not text:
                return text
            texts.append((text, is_answer))
            return f"\ue000{len(texts) - 1}\ue001"

        if isinstance(message["content"], str):
            return {"role": message["role"], "content": kept(message["content"])}
        parts: list[dict] = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image"})
                continue
            text = part["text"]
            if self._breaks_after_image and parts and parts[-1]["type"] == "image":
                text = text.removeprefix("\n")
            parts.append({"type": "text", "text": kept(text)})
        return {"role": message["role"], "content": parts}

    def _render(self, messages: Sequence[dict], options: dict[str, Any]) -> str:
        special: dict[str, Any] = dict(self._tokenizer.special_tokens_map)
        [rendered], _ = render_jinja_template([list(messages)], chat_template=self._chat_template, **options, **special)
        return rendered

    def _pieces(self, rendered: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
        """The tokens of the rendered string; control tokens only where the template wrote them."""
        bos = self._tokenizer.bos_token
        encoded = self._tokenizer(
            rendered,
            add_special_tokens=bos is None or not rendered.startswith(bos),  # as a processor's apply_chat_template does
            return_offsets_mapping=True,
        )
        offsets = encoded["offset_mapping"]
        pieces = [Piece(id, *offset) for id, offset in zip(encoded["input_ids"], offsets, strict=True)]

        def is_forged(piece: Piece) -> bool:
            return piece.id in self._control_ids and any(
                piece.start < end and piece.end > start for start, end in spans
            )

        if not any(map(is_forged, pieces)):
            return pieces
        cursor, again = 0, []
        trusted = [piece for piece in pieces if piece.id in self._control_ids and not is_forged(piece)]
        ends = [
            piece for piece in trusted if piece.start == piece.end and pieces.index(piece) > 0
        ]  # put after the string
        for control in trusted:
            if control not in ends:
                again += [*self._ordinary(rendered, cursor, control.start), control]
                cursor = max(cursor, control.end)
        return [*again, *self._ordinary(rendered, cursor, len(rendered)), *ends]

    def _ordinary(self, rendered: str, start: int, end: int) -> list[Piece]:
        """A piece of the string as ordinary text, whatever it spells."""
        if start >= end:
            return []
        encoded = self._spelling.encode(rendered[start:end], add_special_tokens=False)
        self.encode_text(rendered[start:end])
        return [Piece(id, start + a, start + b) for id, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)]


def _in_parts(message: dict) -> dict:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _spans(rendered: str, marked: str, texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Where the texts of a conversation stand in the rendered string: `(start, end, number of the text)`.

    Raises:
        ValueError: The template changes a text in another way than by cutting blanks off its ends.
    """
    literals = MARK.split(marked)  # the template's own, and between them the numbers of the texts
    place = len(literals[0])
    is_known = rendered.startswith(literals[0])
    marks = list(zip(map(int, literals[1::2]), literals[2::2], strict=True))
    for step, (number, literal) in enumerate(marks, 1):
        is_last, text = step == len(marks), texts[number]
        for shown in dict.fromkeys((text, text.rstrip(), text.lstrip(), text.strip())):
            after = place + len(shown)
            follows = rendered[after:] == literal if is_last else rendered.startswith(literal, after)
            if rendered.startswith(shown, place) and follows:
                yield place, after, number
                place = after + len(literal)
                break
        else:
            is_known = False
            break
    if not is_known or place != len(rendered):
        raise ValueError(
            "this chat template rewrites what people say, so its own words cannot be told from theirs; shorten the conversation to plain "
            "questions and answers, or use another template"
        )
