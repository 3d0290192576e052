"""`transformers serve` loads the model by the two registrations of `vision_remember.model` and answers on loopback as the engine does."""

import base64
import io
import json
import socket
import urllib.error
import urllib.request

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.import_utils import is_serve_available

from tests.model.conftest import V2, ask, page, stir
from vision_remember.model import VisionRememberForConditionalGeneration
from vision_remember.model.engine import Engine, Request

needs_server = pytest.mark.skipif(
    not is_serve_available(), reason="transformers serve needs fastapi, uvicorn and openai: the extra `serve`"
)


def test_the_library_finds_the_class_by_its_name_and_knows_that_it_takes_images(build):
    assert transformers.VisionRememberForConditionalGeneration is VisionRememberForConditionalGeneration
    assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["vision_remember"] == "VisionRememberForConditionalGeneration"


@needs_server
def test_the_model_manager_of_the_server_loads_it_as_a_vision_language_model(build, processor, tmp_path):
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.utils import Modality

    build(V2).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    manager = ModelManager(device="cpu", model_timeout=-1)
    try:
        model, loaded = manager.load_model_and_processor(manager.process_model_name(str(tmp_path)))
        assert type(model) is VisionRememberForConditionalGeneration
        assert type(loaded) is type(processor)
        assert manager.get_model_modality(model, processor=loaded) is Modality.VLM
    finally:
        manager.shutdown()


@pytest.fixture
def server(build, processor, tmp_path):
    """A server of one stirred model: its address, and the engine of the same model."""
    from transformers.cli.serve import Serve

    model = stir(build(V2))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Serve(
        force_model=str(tmp_path),
        device="cpu",
        host="127.0.0.1",
        port=port,
        non_blocking=True,
        # Called as a function, its other options would keep the descriptions that its command line reads.
        chat_template_kwargs=None,
        decision_config=None,
        default_seed=None,
        log_level="error",
    )
    yield f"http://127.0.0.1:{port}/v1/chat/completions", str(tmp_path), Engine(model, processor)
    server.kill_server()


def post(address, model, url, *, stream=False):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is the total?"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "stream": stream}
    request = urllib.request.Request(
        address, data=json.dumps(body | {"temperature": 0.0}).encode(), headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


@needs_server
def test_it_answers_a_question_with_an_image_plainly_and_as_a_stream(server):
    address, model, engine = server
    picture = io.BytesIO()
    page(1).save(picture, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    expected = engine.answer([Request(ask("What is the total?", page(1)))], max_new_tokens=8)[0]

    plain = json.loads(post(address, model, url))
    # The server shows the half character that an answer cut by max_tokens may end in; the engine leaves it out.
    assert plain["choices"][0]["message"]["content"].rstrip("\ufffd") == expected.text
    assert plain["usage"]["prompt_tokens"] == expected.prompt_tokens
    events = [line.removeprefix("data: ") for line in post(address, model, url, stream=True).splitlines() if line]
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events if event != "[DONE]"]
    assert "".join(pieces) == expected.text

    for elsewhere in ("http://127.0.0.1:9/a.png", "/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError):  # nothing is fetched and no file is opened for a request
            post(address, model, elsewhere)
