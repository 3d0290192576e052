"""The command line keeps its promises (docs/command_line.md): statuses, streams, one JSON object, no traceback for a user's mistake."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import vision_remember_cli as front
from tests.evaluation import copies
from tests.llava import save_llava
from tests.tiny import save_encoder, save_language_model
from vision_remember import VisionRememberForConditionalGeneration, VisionRememberProcessor, cli

ROOT = Path(__file__).resolve().parents[1]
VERBS = [
    *("demo", "ask", "train", "convert", "evaluate", "compare", "list", "data", "data make", "data show", "data check"),
    *("paper-table", "foundation", "foundation build", "bench", "bench prefill", "bench step"),
]
# The front end in a process of its own, over a package whose `list` does what the test says: importing the real one takes seconds.
# A job in the background inherits that Ctrl-C is ignored; the stand-in takes it, as in a terminal.
STAND_IN = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
def list_methods():
    {body}
    return types.SimpleNamespace(text="word " * 100_000, data={{}}, succeeded=True)
sys.modules["vision_remember"] = types.SimpleNamespace(cli=types.SimpleNamespace(list_methods=list_methods))
import vision_remember_cli
sys.argv = ["vision-remember", "list"]
vision_remember_cli.main()
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(front.app, [str(argument) for argument in arguments])


def parsed(result: Result) -> dict:
    """The one JSON object of stdout."""
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def shell(line: str, *, body: str = "pass") -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which $VR is the stand-in command."""
    environment = {**os.environ, "CODE": STAND_IN.format(body=body), "PYTHON": sys.executable}
    line = f'vr() {{ "$PYTHON" -c "$CODE"; }}; {line}'
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with remember, saved as training saves it."""
    folder = tmp_path_factory.mktemp("model")
    vision, text = save_encoder(folder / "vision"), save_language_model(folder / "text")
    options = {"projector": {"type": "avg_pool", "scale": 3}, "refusion": {"type": "remember", "layers": [0, 1]}}
    made = VisionRememberForConditionalGeneration.from_backbones(str(vision), str(text), **options)
    made.save_pretrained(folder / "model")
    VisionRememberProcessor.from_backbones(str(vision), str(text), made.config).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.png"
    Image.new("RGB", (60, 40), "white").save(path)
    return path


def test_help_of_every_verb_takes_less_than_a_second_and_no_torch() -> None:
    code = (
        "import sys, vision_remember_cli as front\nfrom typer.testing import CliRunner\n"
        f"for verb in {VERBS!r}:\n"
        "    done = CliRunner().invoke(front.app, [*verb.split(), '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.stdout, verb\n"
        "assert not {'torch', 'transformers', 'vision_remember', 'PIL'} & set(sys.modules)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    seconds = (
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    )  # of work: others may be using this machine
    assert seconds < 1 + 0.1 * len(VERBS)


def test_help_shows_defaults() -> None:
    assert "[default: 64]" in run("ask", "--help").stdout


@pytest.mark.parametrize(
    "line",
    [
        "",
        "data",
        "foundation",
        "remember",
        "ask",
        "ask page.png",
        "ask a b --colour",
        "compare tiny/demo.yaml",
        "data make --out x",
    ],
)
def test_wrong_usage_is_2_and_says_what_is_right(line: str) -> None:
    result = run(*line.split())
    assert result.exit_code == 2
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.parametrize("shard", ["2", "0/2", "3/2", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_wrong_usage(shard: str, tmp_path: Path) -> None:
    result = run("compare", "tiny/demo.yaml", "--out", tmp_path, f"--shard={shard}")
    assert result.exit_code == 2
    assert shard in result.stderr


@pytest.mark.parametrize("seeds", ["one", "0,,1", "0,0"])
def test_seeds_that_are_none_are_wrong_usage(seeds: str, tmp_path: Path) -> None:
    result = run("compare", "tiny/demo.yaml", "--out", tmp_path, "--seeds", seeds)
    assert result.exit_code == 2
    assert seeds in result.stderr


def test_ask_prints_the_answer_alone(model: Path, page: Path) -> None:
    content = parsed(run("ask", page, "What is the total?", "--model", model, "--max-new-tokens", 4, "--json"))
    assert content.keys() == {"model", "image", "question", "answer", "prompt_tokens", "new_tokens", "explain"}
    plain = run("ask", page, "What is the total?", "--model", model, "--max-new-tokens", 4)
    assert (plain.exit_code, plain.stdout) == (0, content["answer"] + "\n")


def test_ask_explain_draws_where_it_looked(model: Path, page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "look.png"
    content = parsed(run("ask", page, "What?", "--model", model, "--max-new-tokens", 2, "--explain", picture, "--json"))
    assert content["explain"] == str(picture)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"


def test_ask_and_evaluate_take_another_number_of_vision_tokens(model: Path, page: Path) -> None:
    told = [
        parsed(run("ask", page, "What?", "--model", model, "--max-new-tokens", 2, *tokens, "--json"))["prompt_tokens"]
        for tokens in ((), ("--tokens", 4), ("--tokens", 1))
    ]
    assert told[1] - told[2] == 3
    scored = run("evaluate", "count=2", "--model", model, "--tokens", 1, "--json")
    assert parsed(scored)["architecture"]["tokens"] == 1
    refused = run("ask", page, "What?", "--model", model, "--tokens", 49)
    assert refused.exit_code == 1 and "49" not in refused.stdout and "7x7 tokens" in refused.stderr


def test_bench_prefill_runs_at_toy_size() -> None:
    found = parsed(run("bench", "prefill", "--size", "tiny", "--batch", 2, "--rounds", 2, "--json"))
    assert found["size"] == "tiny" and found["batch"] == 2
    assert found["bars"] == {"prefill_ratio": 1.05, "decode_ratio": 0.99}
    refused = run("bench", "prefill", "--size", "7b")
    assert refused.exit_code == 1 and "tiny, 0.5b, 2b" in refused.stderr


def test_evaluate_scores_a_task(model: Path, tmp_path: Path) -> None:
    options = ("count=2", "families=[form]", "questions=1", "--model", model, "--out", tmp_path / "scores")
    content = parsed(run("evaluate", *options, "--json"))
    assert content["scores"]["form"]["n"] == 2
    assert (tmp_path / "scores" / "answers.jsonl").is_file()


def test_list_finds_every_plug_in() -> None:
    content = parsed(run("list", "--json"))
    assert {row["name"]: row["tokens"] for row in content["projectors"]}["mlp"] == 576
    assert {row["name"]: row["parameters"] for row in content["refusion"]}["none"] == 0
    assert all(row["about"] for rows in content.values() for row in rows)


def test_data_is_made_shown_and_checked(tmp_path: Path) -> None:
    out = tmp_path / "pages"
    made = parsed(run("data", "make", "--out", out, "--count", 2, "--split", "test", "--family", "form", "--json"))
    assert made["samples"] == len(json.loads((out / "data.json").read_text())) == 2
    assert parsed(run("data", "check", out, "--json"))["problems"] == []
    assert Path(parsed(run("data", "show", out, "--json"))["contact_sheet"]).is_file()
    for image in (out / "images").iterdir():
        image.write_bytes(b"not an image")
    bad = run("data", "check", out)
    assert bad.exit_code == 1
    assert all(image.name in bad.stdout for image in (out / "images").iterdir())


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("ask absent.png What?", "absent.png"),
        ("ask {page} What? --model embedded/lava", "embedded/lava"),
        ("ask {page} What? --model ./absent", "./absent"),
        ("ask {page} What? --model embedded/encoder", "embedded/encoder"),
        ("ask {page} What? --explain look.gif", "look.gif"),
        ("train absent.yaml", "absent.yaml"),
        ("compare absent.yaml --out {tmp}/out", "absent.yaml"),
        ("evaluate count=2 --task reading", "reading"),
        ("evaluate count", "count"),
        ("evaluate count={{", "'count={': write it as key=value, with a value in YAML"),
        ("convert {tmp} {tmp}/converted --refusion {{type:remember", "'{type:remember': write it as NAME or"),
        ("data make --out {tmp}/out --count 1 --family poem", "poem"),
        ("data make --out {tmp}/out --count 1 --split exam", "exam"),
        ("data show {tmp}/absent", "absent"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_1(
    line: str, named: str, model: Path, page: Path, tmp_path: Path
) -> None:
    arguments = line.format(page=page, tmp=tmp_path).split()
    if arguments[0] == "evaluate":
        arguments += ["--model", str(model)]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert named in json.loads(run(*arguments, "--json").stdout)["error"]


def test_an_error_shows_its_traceback_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_REMEMBER_TRACEBACK", "1")
    assert isinstance(run("train", "absent.yaml").exception, ValueError)


def test_what_libraries_print_stays_out_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy() -> cli.Report:
        print("loading 100 %")
        return cli.Report(text="", data={"tensors": torch.zeros(2).tolist()})

    monkeypatch.setattr(cli, "list_methods", noisy)
    result = run("list", "--json")
    assert parsed(result) == {"tensors": [0.0, 0.0]}
    assert "loading" in result.stderr


def test_ctrl_c_is_130_without_traceback() -> None:
    code = STAND_IN.format(body="print('begun', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("", "interrupted\n")


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    done = shell("vr | head -c 4; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "word", "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(closed: str) -> None:
    done = shell(f"vr {closed}", body="print('note')")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_scores_a_suite_and_paper_table_lays_it_beside_published_figures(model: Path, tmp_path: Path) -> None:
    copies.write_json(tmp_path / "copies" / "gqa", "gqa")
    suite = ("evaluate", "--suite", tmp_path / "copies", "--model", model)
    scored = parsed(run(*suite, "--out", tmp_path / "runs" / "mine", "--json"))
    assert set(scored["suite"]) == {"gqa"} and scored["suite"]["gqa"]["questions"] == 3
    groups = parsed(run("paper-table", "--runs", tmp_path / "runs", "--json"))["groups"]
    cell = groups[0]["rows"][-1]["cells"]["GQA"]
    assert (cell["status"], cell["questions"]) == ("measured here", 3)
    assert "* measured here" in run("paper-table", "--runs", tmp_path / "runs").stdout
    assert "accuracy" in run(*suite, "limit=2").stdout
    path = f"path={tmp_path / 'copies' / 'gqa'}"
    assert "accuracy" in run("evaluate", "--task", "gqa", path, "--model", model).stdout
    both = run(*suite, "--task", "gqa")
    assert both.exit_code == 1 and "give one of them" in both.stderr


def test_convert_makes_a_folder_that_can_be_asked_and_never_overwrites_one(page: Path, tmp_path: Path) -> None:
    source, target = save_llava(tmp_path / "llava", "llava_next", "clip", "mistral"), tmp_path / "converted"
    result = run("convert", source, target, "--refusion", "{type: remember, layers: [0]}", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["refusion"].items() >= {"type": "remember", "layers": [0]}.items()
    assert found["resolution"]["mode"] == "anyres"
    answered = run("ask", page, "What?", "--model", target, "--max-new-tokens", 3, "--json")
    assert json.loads(answered.stdout)["new_tokens"] <= 3
    again = run("convert", source, target)
    assert again.exit_code == 1 and "is not an empty folder" in again.stderr
    refused = run("convert", source, tmp_path / "other", "--refusion", "rember")
    assert refused.exit_code == 1 and "did you mean 'remember'" in refused.stderr
