import pytest
import torch

from tests.model.conftest import MIXED, NONE, V1, V2, ask, page, stir
from vision_remember.geometry import Grid
from vision_remember.model.engine import Engine, Request


@pytest.fixture(scope="module")
def engine(build, processor):
    return Engine(stir(build(V1)), processor)


def test_answers_do_not_depend_on_the_batch(engine):
    requests = [Request(messages) for messages in MIXED]
    batched = engine.answer(requests, max_new_tokens=8, batch_size=8)
    assert batched == engine.answer(requests, max_new_tokens=8, batch_size=3)
    assert batched == [engine.answer([request], max_new_tokens=8)[0] for request in requests]
    assert batched[0].prompt_tokens == len(engine.processor.encode(MIXED[0], add_generation_prompt=True).input_ids)
    assert all(1 <= answer.new_tokens <= 8 for answer in batched)


def test_images_may_stand_beside_the_messages(engine):
    empty = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert engine.answer([Request(empty, [page(1)])]) == engine.answer([Request(ask("What?", page(1)))])


def test_asking_about_a_file_spells_the_question_as_training_data_does(engine, tmp_path):
    page(1).save(tmp_path / "page.png")
    expected = engine.answer([Request(ask("\nWhat?", page(1)))])[0].text
    assert engine.ask(tmp_path / "page.png", "What?") == engine.ask(page(1), "What?") == expected


def test_an_unknown_embedded_model_is_refused():
    with pytest.raises(ValueError, match="embedded/nothing is not in the package"):
        Engine.load("embedded/nothing")


def test_progress_counts_requests(engine):
    seen: list[int] = []
    engine.answer([Request(ask("Hi"))] * 5, max_new_tokens=1, batch_size=2, progress=seen.append)
    assert seen == [2, 2, 1]


def test_a_stream_joins_to_the_answer(engine):
    for messages in MIXED[:4]:
        pieces = list(engine.stream(Request(messages), max_new_tokens=24))
        assert "".join(pieces) == engine.answer([Request(messages)], max_new_tokens=24)[0].text
        assert not any(piece.endswith("\ufffd") for piece in pieces)


def speak(engine, monkeypatch, text):
    """Let the model say a text, whatever it is asked, and then end."""
    ids = [*engine.processor.template.encode_text(text), engine.processor.template.end_id]

    def generate(input_ids, streamer=None, stopping_criteria=(), max_new_tokens=None, **options):
        spoken = torch.tensor([ids])
        if streamer is not None:
            streamer.put(input_ids)
            for token in ids:
                if any(criterion(input_ids, None).all() for criterion in stopping_criteria):
                    break
                streamer.put(torch.tensor([token]))
            streamer.end()
        return torch.cat([input_ids, spoken.expand(len(input_ids), -1)], dim=1)

    monkeypatch.setattr(engine.model, "generate", generate)


def test_a_stream_never_cuts_a_character(engine, monkeypatch):
    text = "Preis: 5 € – 価格 👩‍👩‍👧 fin"
    speak(engine, monkeypatch, text)
    pieces = list(engine.stream(Request(ask("What?"))))
    assert "".join(pieces) == text == engine.answer([Request(ask("What?"))])[0].text
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_that_is_closed_stops_the_model(engine):
    stream = engine.stream(Request(ask("Count", page(1))), max_new_tokens=400)
    next(stream)
    stream.close()  # returns only after the generating thread has ended
    assert next(engine.stream(Request(ask("Hi")), max_new_tokens=8), "") is not None


def test_an_error_while_streaming_reaches_the_reader(engine, monkeypatch):
    def fail(**options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(engine.stream(Request(ask("Hi"))))


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(engine):
    with pytest.raises(
        ValueError, match=r"requests\[1\] has \d+ prompt tokens, with 500 new ones more than the context of 512"
    ):
        engine.answer([Request(ask("")), Request(ask("long " * 40))], max_new_tokens=500)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        engine.answer([Request(ask("Hi"))], max_new_tokens=0)


@pytest.mark.parametrize("method", [V1, V2])
def test_explain_reports_where_the_tokens_looked(build, processor, method):
    engine = Engine(stir(build(method)), processor)
    request = Request(ask("What?", page(1, (96, 40))))
    found = engine.explain(request, max_new_tokens=4)
    assert found.answer == engine.answer([request], max_new_tokens=4)[0]
    assert (found.patch_grid, found.token_grid, found.image.size) == (Grid(6, 6), Grid(2, 2), (48, 48))
    assert list(found.attention) == sorted(method["layers"])
    for weights in found.attention.values():
        assert weights.shape[:2] == (4, 4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4))


def test_explain_refuses_what_it_cannot_draw(engine, build, processor):
    with pytest.raises(ValueError, match="explain draws one image, the request has 2"):
        engine.explain(Request(ask("What?", page(1), page(2))))
    with pytest.raises(ValueError, match="re-fusion none records no attention"):
        Engine(build(NONE), processor).explain(Request(ask("What?", page(1))))


def test_a_saved_model_loads_into_an_engine(engine, tmp_path):
    engine.model.save_pretrained(tmp_path)
    engine.processor.save_pretrained(tmp_path)
    request = Request(ask("What?", page(1)))
    assert Engine.load(str(tmp_path), device="cpu").answer([request]) == engine.answer([request])
