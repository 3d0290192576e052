"""Our plug-in for lmms-eval, and our metrics against its functions.

The plug-in's own logic is tried with a stand-in for lmms-eval's two classes. The tests marked slow use the real one, in processes of their
own: where it is not importable they install it, without its dependencies, into a temporary folder, and skip where that cannot be done.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from tests.evaluation import copies
from tests.tiny import save_encoder, save_language_model
from vision_remember.evaluation.runner import evaluate
from vision_remember.model.modeling import VisionRememberForConditionalGeneration
from vision_remember.model.processing import VisionRememberProcessor

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TASKS = ROOT / "vision_remember" / "evaluation" / "lmms_eval_tasks"
SCRIPT = Path(__file__).with_name("against_lmms_eval.py")
BENCHMARKS = sorted(copies.ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lmms")
    parts = str(save_encoder(home / "encoder")), str(save_language_model(home / "language_model"))
    made = VisionRememberForConditionalGeneration.from_backbones(*parts, projector={"type": "avg_pool", "scale": 3})
    made.save_pretrained(home / "model")
    VisionRememberProcessor.from_backbones(*parts, made.config).save_pretrained(home / "model")
    return home / "model"


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Our module over a stand-in for the base class and the manifest of lmms-eval."""

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict = {}

    @dataclass(frozen=True)
    class Manifest:
        model_id: str
        chat_class_path: str

    for name, content in (("api.model", {"lmms": Base}), ("models.registry_v2", {"ModelManifest": Manifest})):
        stand_in = types.ModuleType(f"lmms_eval.{name}")
        vars(stand_in).update(content)
        monkeypatch.setitem(sys.modules, f"lmms_eval.{name}", stand_in)
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.delitem(sys.modules, "vision_remember.evaluation.lmms_eval", raising=False)
    module = importlib.import_module("vision_remember.evaluation.lmms_eval")
    yield module
    sys.modules.pop("vision_remember.evaluation.lmms_eval")


def test_the_entry_point_names_a_manifest_whose_class_exists(plug_in: types.ModuleType) -> None:
    [(name, target)] = PROJECT["entry-points"]["lmms_eval.models"].items()
    path, attribute = target.split(":")
    assert (name, path) == ("vision_remember", plug_in.__name__)
    manifest = getattr(plug_in, attribute)
    assert manifest.model_id == "vision_remember"
    assert manifest.chat_class_path == f"{plug_in.__name__}.{plug_in.VisionRemember.__name__}"
    assert plug_in.VisionRemember.is_simple is False and plug_in.TASKS == TASKS


def test_answers_come_in_order_whatever_the_batches_and_stop_where_asked(plug_in, model: Path) -> None:
    lm = plug_in.VisionRemember(pretrained=str(model), batch_size=3)
    documents = [{"text": f"What is the value of {n}?"} for n in range(7)]
    lm.task_dict = {"task": {"test": documents}}
    page = Image.new("L", (48, 48), "white")

    def messages(document: dict) -> list[dict]:
        parts = [{"type": "image", "url": page}, {"type": "text", "text": document["text"]}]
        return [{"role": "user", "content": parts}]

    def ask(**options: object) -> list[str]:
        lengths = [{"max_new_tokens": 6 + 2 * (n % 2), **options} for n in range(7)]
        return lm.generate_until(
            [types.SimpleNamespace(args=("", messages, lengths[n], n, "task", "test")) for n in range(7)]
        )

    together = ask()
    alone = [
        lm.engine.answer([plug_in.chat_request(messages(documents[n]))], max_new_tokens=6 + 2 * (n % 2))[0].text
        for n in range(7)
    ]
    assert together == alone and len(set(together)) > 1
    letter = together[0][1]
    assert ask(until=[letter, "never"]) == [text.split(letter)[0] for text in together]
    assert ask(until="never", temperature=0, do_sample=False, num_beams=1) == together
    for refused in ({"do_sample": True}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="answers are greedy"):
            ask(**refused)


def test_a_question_is_laid_out_as_evaluate_lays_it_out(plug_in) -> None:
    page = Image.new("L", (4, 4))
    parts = [{"type": "image", "url": page}, {"type": "text", "text": "What? "}]
    request = plug_in.chat_request([{"role": "user", "content": parts}])
    assert request.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]
    assert request.images[0].mode == "RGB"
    with pytest.raises(ValueError, match="a video part"):
        plug_in.chat_request([{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}])


def test_what_is_not_supported_is_refused(plug_in, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = plug_in.VisionRemember(pretrained=str(model))
    for verb in (lm.loglikelihood, lm.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="generate_until"):
            verb([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched"):
        plug_in.VisionRemember(pretrained=str(model))


def test_the_offline_task_asks_the_pages_of_the_synthetic_suite() -> None:
    spec = importlib.util.spec_from_file_location("pages", TASKS / "pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    [told] = json.loads((TASKS / "pages.json").read_text(encoding="utf-8"))
    rows = pages.documents(Dataset.from_list([{**told, "count": 5}]))
    assert len(set(rows["family"])) == 5 and len(set(rows["id"])) == len(rows) > 5
    assert pages.visual(rows[0])[0].mode == "RGB"
    assert pages.results(rows[0], [rows[0]["answer"]]) == {"exact_match": 1.0, "anls": 1.0}
    assert pages.results(rows[0], [""]) == {"exact_match": 0.0, "anls": 0.0}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds lmms-eval, this checkout, and its entry points as if it were installed."""
    paths = [str(ROOT)]
    if importlib.util.find_spec("lmms_eval") is None:
        paths.append(_install(tmp_path_factory.mktemp("lmms_eval")))
    installed = tmp_path_factory.mktemp("installed")
    information = installed / "vision_remember-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vision-remember\nVersion: 0.1.0\n")
    [(name, target_name)] = PROJECT["entry-points"]["lmms_eval.models"].items()
    (information / "entry_points.txt").write_text(f"[lmms_eval.models]\n{name} = {target_name}\n")
    path = os.pathsep.join([*paths, str(installed), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _install(prefix: Path) -> str:
    """Installs lmms-eval alone and what it needs that is not here yet; skips where that cannot be done."""
    here = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    kept = prefix / "constraints.txt"
    kept.write_text("".join(f"{name}=={version}\n" for name, version in here.items() if name != "vision-remember"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--prefix", str(prefix)]
    needs = PROJECT["optional-dependencies"]["lmms-eval"]
    [older] = (need for need in needs if need.startswith("filelock"))  # beside the one that is here, not in its place
    extra = ["--constraint", str(kept), *(need for need in needs if need != older)]
    for packages in (["--no-deps", "lmms-eval==0.7.3"], ["--no-deps", "--ignore-installed", older], extra):
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"lmms-eval is not importable and cannot be installed: {done.stderr.strip()[-200:]}")
    return sysconfig.get_path("purelib", vars={"base": str(prefix)})


@pytest.fixture(scope="module")
def outcome(library: dict[str, str]) -> dict:
    done = subprocess.run([sys.executable, str(SCRIPT)], env=library, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_metric_equals_lmms_eval_on_a_thousand_answers(name: str, outcome: dict) -> None:
    found = outcome[name]
    assert found["pairs"] >= 1_000
    assert found["different"] == []
    assert 0.1 * found["pairs"] < found["positive"] < 0.9 * found["pairs"]
    for headline, (ours, theirs) in found["totals"].items():
        assert ours == pytest.approx(theirs, rel=1e-12), headline


@pytest.mark.slow
def test_lmms_eval_asks_our_model_offline_and_gets_the_scores_of_evaluate(
    library: dict[str, str], model: Path, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(TASKS, tasks)
    (tasks / "pages.json").write_text('[{"count": 10, "split": "test", "seed": 0}]')
    command = [sys.executable, "-m", "lmms_eval", "--model", "vision_remember"]
    command += ["--model_args", f"pretrained={model}", "--tasks", "vision_remember_synthetic", "--include_path", tasks]
    command += ["--batch_size", "4", "--device", "cpu", "--output_path", tmp_path / "out", "--log_samples"]
    done = subprocess.run(command, env=library, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = (tmp_path / "out").rglob("*results.json")
    scores = json.loads(path.read_text(encoding="utf-8"))["results"]["vision_remember_synthetic"]
    ours = evaluate(model, {"type": "synthetic_documents", "count": 10}).records
    for metric in ("exact_match", "anls"):
        mean = sum(getattr(record, metric) for record in ours) / len(ours)
        assert scores[f"{metric},none"] == pytest.approx(mean)
    [path] = (tmp_path / "out").rglob("*samples*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [sample["filtered_resps"].strip() for sample in samples] == [record.prediction.strip() for record in ours]
    assert any(record.prediction for record in ours)
