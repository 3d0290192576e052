"""The chat template at the level of token ids: text can spell a control token, but never *be* one.

Templates that build one string and tokenise it afterwards let a user's words become image slots or roles. Here the control ids are put
down one by one and every piece of text is encoded by a copy of the tokenizer that knows no added token, so the number of image slots
and roles depends on the structure of the messages alone. The format is ChatML (Qwen2), with no default system prompt:

    <|im_start|>user\\n<image>...<image>What is the total?<|im_end|>\\n<|im_start|>assistant\\n42<|im_end|>\\n

`CHAT_TEMPLATE` is the same format in Jinja, for display and for tools that read `chat_template.jinja`.

Source: ChatML as in Qwen2's tokenizer_config.json; the id-level rule is our choice (vLLM CVE-2026-44222 shows why).
"""

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

IMAGE_TOKEN, TURN_START, TURN_END = "<image>", "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


Messages = Sequence[dict]


@dataclass(frozen=True, kw_only=True)
class TokenizedChat:
    """One conversation as ids.

    Attributes:
        input_ids: Token ids, image slots expanded.
        target: True on the text and the end token of assistant turns: what a model is trained to say.
        num_images: Number of images the structure asks for.
    """

    input_ids: list[int]
    target: list[bool]
    num_images: int

    def with_lengths(self, lengths: Sequence[int], image_token_id: int) -> "TokenizedChat":
        """The same with each slot, a single token so far, as long as its image asks for.

        Args:
            lengths: Vision tokens of each image, in reading order.
            image_token_id: The placeholder.
        """
        waiting = iter(lengths)
        repeats = [next(waiting) if token == image_token_id else 1 for token in self.input_ids]
        ids = [token for token, count in zip(self.input_ids, repeats, strict=True) for _ in range(count)]
        target = [is_said for is_said, count in zip(self.target, repeats, strict=True) for _ in range(count)]
        return TokenizedChat(input_ids=ids, target=target, num_images=self.num_images)


class RenderedChat(str):
    """A chat rendered for display. It remembers its messages, so `processor(text=rendered)` encodes the structure, not the string."""

    messages: Messages
    options: dict[str, bool]


class ChatTemplate:
    """Turns messages into ids for one tokenizer.

    Args:
        tokenizer: A tokenizer that knows the control tokens (`load_tokenizer`).
        num_image_tokens: Vision tokens V that stand for one image.

    Raises:
        ValueError: The tokenizer cannot spell one of its own control tokens as ordinary text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_image_tokens: int):
        self.num_image_tokens = num_image_tokens
        self.image_token_id, self.start_id, self.end_id = (
            token_id(tokenizer, token) for token in (IMAGE_TOKEN, TURN_START, TURN_END)
        )
        self.pad_id = tokenizer.pad_token_id
        self._control_ids = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        self._spelling = without_added_tokens(tokenizer)
        for token in tokenizer.added_tokens_decoder.values():
            self.encode_text(token.content)

    def encode_text(self, text: str) -> list[int]:
        """Encode text as ordinary text, whatever it spells.

        Raises:
            ValueError: The vocabulary itself holds a control token as a piece, so it cannot be spelt safely.
        """
        return encode_as_text(self._spelling, self._control_ids, text)

    def encode(
        self, messages: Messages, *, add_generation_prompt: bool = False, continue_final_message: bool = False
    ) -> TokenizedChat:
        """Encode one conversation.

        Args:
            messages: Hugging Face chat format; `content` is a string or a list of `{"type": "image"}` and
                `{"type": "text", "text": ...}` parts.
            add_generation_prompt: End with the opening of an assistant turn.
            continue_final_message: Leave the last turn open, so that generation goes on inside it.

        Returns:
            The ids, the target mask and the number of images.

        Raises:
            ValueError: A message is malformed; names `messages[i].content[j]`.
        """
        ids: list[int] = []
        target: list[bool] = []
        num_images = 0

        def put(new_ids: list[int], is_target: bool = False) -> None:
            ids.extend(new_ids)
            target.extend([is_target] * len(new_ids))

        for number, message in enumerate(messages):
            role, parts = read_message(message, number)
            is_answer = role == "assistant"
            put([self.start_id, *self.encode_text(f"{role}\n")])
            for part in parts:
                if part is None:
                    put([self.image_token_id] * self.num_image_tokens)
                    num_images += 1
                else:
                    put(self.encode_text(part), is_answer)
            if continue_final_message and number == len(messages) - 1:
                break
            put([self.end_id], is_answer)
            put(self.encode_text("\n"))
        if add_generation_prompt:
            put([self.start_id, *self.encode_text("assistant\n")])
        return TokenizedChat(input_ids=ids, target=target, num_images=num_images)


def encode_as_text(spelling: Tokenizer, control_ids: Container[int], text: str) -> list[int]:
    """Encode text as ordinary text, whatever it spells.

    Args:
        spelling: The tokenizer `without_added_tokens`.
        control_ids: Ids that text must never become.
        text: Of a user or an assistant.

    Raises:
        ValueError: The vocabulary itself holds a control token as a piece, so the text cannot be spelt safely.
    """
    ids = spelling.encode(text, add_special_tokens=False).ids
    if forged := [token for token in ids if token in control_ids]:
        raise ValueError(
            f"this tokenizer turns ordinary text into control token {min(forged)}; use one that keeps control "
            "tokens out of its vocabulary"
        )
    return ids


def first_question(text: str, num_images: int) -> Messages:
    """A first user turn as training data in LLaVA's layout spells it: the images, a line break, the words."""
    words = f"\n{text}" if num_images else text
    return [{"role": "user", "content": [{"type": "image"}] * num_images + [{"type": "text", "text": words}]}]


def read_message(message: dict, number: int) -> tuple[str, list[str | None]]:
    """Check one message and flatten it: its role, and its parts with `None` for an image and neighbouring texts joined."""
    where = f"messages[{number}]"
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise ValueError(f"{where} must be a dict with 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"{where}.role is {role!r}; use one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return role, [content]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{where}.content must be a string or a list of parts, not {type(content).__name__}")
    parts: list[str | None] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            if role != "user":
                raise ValueError(f"{where}.content[{index}] is an image in a {role} turn; only user turns take images")
            parts.append(None)
        elif kind == "text" and isinstance(part.get("text"), str):
            if parts and parts[-1] is not None:
                parts[-1] += part["text"]
            else:
                parts.append(part["text"])
        else:
            raise ValueError(f"{where}.content[{index}] must be {{'type': 'image'}} or {{'type': 'text', 'text': str}}")
    return role, parts


def load_tokenizer(text: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model and add the control tokens it lacks, always in the same order.

    Args:
        text: Folder or hub id of the language model.

    Raises:
        ValueError: The tokenizer is not backed by the `tokenizers` library.
    """
    tokenizer = AutoTokenizer.from_pretrained(text)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{text} has a slow tokenizer; a tokenizer.json is needed to encode text without control tokens"
        )
    known = tokenizer.get_added_vocab()
    missing = [token for token in (IMAGE_TOKEN, TURN_START, TURN_END) if token not in known]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or TURN_END
    tokenizer.padding_side = "left"
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of an added token.

    Raises:
        ValueError: The tokenizer has none of that name.
    """
    token_id = tokenizer.get_added_vocab().get(token)
    if token_id is None:
        raise ValueError(f"the tokenizer has no {token} token; load it with VisionRememberProcessor.from_backbones")
    return token_id


def without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's back end that splits on no added token, special or not, and adds none."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
