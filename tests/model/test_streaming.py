"""A stream shows whole characters only, whatever the tokenizer makes of bytes, and its pieces join to the answer."""

import copy

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.model.conftest import AVG_POOL, V1, ask, page, stir
from tests.tiny import save_language_model
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.engine import Engine, Request

TEXTS = ["Preis: 5 € – 価格 👩‍👩‍👧 fin", "€", "ends in €", "नमस्ते, Ελλάδα", "日本語\n🇨🇭"]


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Spells unknown characters byte by byte and joins them when decoding, as Llama's and Gemma's tokenizers do."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "é"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def engine(request, backbones, tmp_path_factory):
    vision, text = backbones
    if request.param == "byte_fallback":
        tokenizer = byte_fallback_tokenizer()
        text = save_language_model(tmp_path_factory.mktemp("llama"), "llama", tokenizer=tokenizer)
    model = VisionRememberForConditionalGeneration.from_backbones(vision, text, projector=AVG_POOL, refusion=V1)
    return Engine(stir(model), VisionRememberProcessor.from_backbones(vision, text, model.config))


def scripted(engine, text):
    """The same engine with a model that says a text after every prompt: each token is favoured after those before it."""
    ids = [*engine.processor.template.encode_text(text), engine.processor.template.end_id]
    engine = Engine(copy.deepcopy(engine.model), engine.processor)
    # Twice the favour at every step outweighs all shorter beginnings that happen to match.
    engine.model.generation_config.sequence_bias = [[ids[: n + 1], 100.0 * 2.0**n] for n in range(len(ids))]
    return engine, ids


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_answer(engine, text):
    speaking, ids = scripted(engine, text)
    request = Request(ask("What?", page(1)))
    pieces = list(speaking.stream(request, max_new_tokens=len(ids)))
    assert "".join(pieces) == text == speaking.answer([request], max_new_tokens=len(ids))[0].text
    assert not any("\ufffd" in piece or piece == "" for piece in pieces)
    assert any(speaking.processor.tokenizer.decode([token]) == "\ufffd" for token in ids), (
        "no character spans several tokens"
    )


@pytest.mark.parametrize("text", ["5 € 価格", "ends in €"])
def test_an_answer_cut_inside_a_character_ends_before_it(engine, text):
    speaking, ids = scripted(engine, text)
    request = Request(ask("What?", page(1)))
    for length in range(1, len(ids)):
        pieces = list(speaking.stream(request, max_new_tokens=length))
        answer = speaking.answer([request], max_new_tokens=length)[0].text
        assert "".join(pieces) == answer
        assert text.startswith(answer)
        said = speaking.processor.tokenizer.decode(ids[:length])
        assert len(answer) >= len(said.split("\ufffd")[0]), "a whole character was lost beside the unfinished one"


def test_no_piece_of_a_random_model_ends_in_half_a_character(engine):
    for seed in range(6):
        for piece in engine.stream(Request(ask("What?", page(seed))), max_new_tokens=40):
            assert piece and not piece.endswith("\ufffd")
