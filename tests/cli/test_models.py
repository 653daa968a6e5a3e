"""`modelnet models check`, and what is said of a file of models before anything loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelnet.cli import invoke
from modelnet.engines import vllm_available
from modelnet.errors import UsageError
from modelnet.run import load_app
from tests.engines.models import write_random
from workers.vllm.check import Machine, problems
from workers.vllm.config import ModelConfig, read_config

GIB = 1 << 30
CPU = Machine(memory=16 * GIB, gpus=(), vllm=True)
TWO = Machine(memory=64 * GIB, gpus=(80 * GIB, 80 * GIB), vllm=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("models") / "small").path


def found(machine: Machine, *tables: dict[str, Any]) -> str:
    return "; ".join(problems([ModelConfig(**table) for table in tables], machine))


def test_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_random(tmp_path / "models" / "small")
    adapter = tmp_path / "legal"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA"}))
    file = tmp_path / "workers.toml"
    engine = "auto" if vllm_available() else "numpy"
    file.write_text(
        f'[[models]]\nmodel = "models/small"\nprice = 5\nprice_per_token = 2\nengine = "{engine}"\n'
        + ('[models.adapters.legal]\npath = "legal"\n' if vllm_available() else "")
    )
    assert invoke(["models", "check", str(file), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["model"] == str(tmp_path / "models" / "small")
    assert row["capabilities"][0] == "text.generate"
    assert row["capabilities"][1:] == (["text.generate.legal"] if vllm_available() else [])
    assert row["weights"] > 1000
    assert invoke(["models", "check", str(file)]) == 0
    assert "5 + 2 a token" in capsys.readouterr().out


def test_what_is_wrong_is_told_by_check_and_by_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "workers.toml"
    file.write_text('[[models]]\nmodel = "./nowhere"\n[[models]]\nmodel = "./neither"\n')
    assert invoke(["models", "check", str(file), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2
    assert invoke(["models", "check", str(file)]) == 2
    told = capsys.readouterr().err
    assert "./nowhere: there is no such folder" in told
    assert "./neither: there is no such folder" in told
    with pytest.raises(UsageError, match="no such folder"):
        load_app(str(file))
    assert invoke(["models", "check", str(tmp_path / "no.toml")]) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no models"),
        ("[[models]]\nprice = 1\n", "model 1: model"),
        ('[[models]]\nmodel = "a/b"\nprise = 1\n', r"model 1 \(a/b\): prise"),
        ('[[models]]\nmodel = "a/b"\nprice = -1\n', "price"),
        ('[[models]]\nmodel = "a/b"\ngpu_memory = 1.5\n', "gpu_memory"),
        ('[[models]]\nmodel = "a/b"\ncapability = "Text Generate"\n', "capability"),
        ('[[models]]\nmodel = "a/b"\nengine = "llama"\n', "engine"),
        ('[[models]]\nmodel = "a/b"\ndevices = [0]\nreplicas = [[1]]\n', "give one of the two"),
        ('[[models]]\nmodel = "a/b"\ndtype = "float32"\noptions = { dtype = "float16" }\n', "dtype stands in"),
        ('[[models]]\nmodel = "a/b"\ncapability = "text.embed"\n[models.adapters.a]\npath = "a"\n', "adapters are of"),
        ('[[models]]\nmodel = "a/b"\nurl = "http://x/v1"\n', "go together"),
        ('[[models]]\nmodel = "a/b"\nengine = "openai"\n', "go together"),
        ('[[models]]\nmodel = "a/b"\nkey_variable = "K"\n', "only of a server that runs"),
        ('[[models]]\nmodel = "a.py"\nengine = "function"\ndevices = [0]\n', "only of a model that is loaded here"),
        ('[[models]]\nmodel = "a.py"\nengine = "function"\nsleep_s = 9\n', "only of a model that is loaded here"),
        ('[[models]]\nmodel = "a/b"\nsleep_s = 0\n', "sleep_s"),
        ('[[models]]\nmodel = "a/b"\ncapability = []\n', "capability"),
        ('[[models]]\nmodel = "a/b"\ncapability = ["text.generate", "text.embed"]\n', "not both"),
        ('[[models]]\nmodel = "a/b"\ncapability = "text.embed"\nprice_per_token = 1\n', "price_per_input_token"),
        ('[[model]]\nmodel = "a/b"\n', "unknown model"),
        ("models = 3\n", "names no models"),
        ("models = [3]\n", "model 1"),
        ("[[models]\n", "line 1"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "workers.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=told):
        read_config(file)


def test_a_folder_that_is_no_model(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # an engine that loaded a folder in this process has set it
    assert "no config.json" in found(CPU, {"model": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in found(CPU, {"model": str(tmp_path)})
    dummy = {"load_format": "dummy"}  # what vLLM makes up, and NumPy does not
    assert "no weights" in found(CPU, {"model": str(tmp_path), "engine": "numpy", "options": dummy})
    (tmp_path / "modelnet.json").write_text("{}")
    assert "modelnet.json" in found(CPU, {"model": str(tmp_path)})
    assert found(CPU, {"model": str(model)}) == ""
    assert found(CPU, {"model": "someone/some-model"}) == ""


def test_a_name_that_may_not_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in found(CPU, {"model": "someone/some-model"})


@pytest.mark.parametrize("table", [{"devices": [0]}, {"replicas": [[0], [1]]}, {"tensor_parallel_size": 2}])
def test_no_gpu(model: Path, table: dict[str, Any]) -> None:
    assert "no GPU here" in found(CPU, {"model": str(model), **table})
    assert found(CPU, {"model": str(model), "gpu_memory": 0.5}, {"model": str(model), "gpu_memory": 0.9}) == ""


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"devices": [2]}, "no GPU 2"),
        ({"devices": [0, 0]}, "twice"),
        ({"tensor_parallel_size": 4}, "split over 4 GPUs and has 2"),
        ({"tensor_parallel_size": 2, "replicas": [[0], [1]]}, "split over 2 GPUs and has 1"),
        ({"tensor_parallel_size": 2}, ""),
        ({"replicas": [[0], [1]], "gpu_memory": 1.0}, ""),
    ],
)
def test_gpus(model: Path, table: dict[str, Any], told: str) -> None:
    told_now = found(TWO, {"model": str(model), **table})
    assert told in told_now
    assert bool(told_now) == bool(told)


def test_cores(model: Path) -> None:
    one, four = {"model": str(model)}, replace(CPU, cores=4)
    assert found(four, {**one, "cores": [0, 1]}, {**one, "cores": [3]}) == ""
    assert "no core 4, 7: they are numbered from 0 to 3" in found(four, {**one, "cores": [2, 4, 7]})
    assert "core 1: given away more than once" in found(four, {**one, "cores": [0, 1]}, {**one, "cores": [1]})
    assert "leave one for the network" in found(four, {**one, "cores": [0, 1]}, {**one, "cores": [2, 3]})
    assert "can't hold cores" in found(replace(CPU, cores=0), {**one, "cores": [0]})
    assert "not installed" in found(replace(four, vllm=False), {**one, "cores": [0]})
    assert "on the GPU" in found(replace(TWO, cores=4), {**one, "cores": [0]})


def test_a_model_that_is_to_sleep_on_a_gpu_has_room_in_memory(model: Path) -> None:
    one = {"model": str(model), "sleep_s": 60}
    assert found(TWO, one) == ""
    small = replace(TWO, memory=1)
    assert "asleep, its weights of" in found(small, one)
    assert found(small, {**one, "engine": "vllm"}) == "", "it is closed instead"
    assert found(small, {"model": str(model)}) == ""


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('engine = "vllm"\ncores = [0]', "an engine with a process of its own"),
        ("cores = [0]\ndevices = [1]", "give one of the two"),
        ("cores = []", "cores"),
        ("cores = [-1]", "cores"),
        ('engine = "function"\ncores = [0]', "only of a model that is loaded here"),
    ],
)
def test_cores_that_no_machine_could_hold(tmp_path: Path, table: str, told: str) -> None:
    file = tmp_path / "workers.toml"
    file.write_text(f'[[models]]\nmodel = "a/b"\n{table}\n')
    with pytest.raises(UsageError, match=told):
        read_config(file)


def test_models_share_a_gpu_by_their_shares(model: Path) -> None:
    one = {"model": str(model)}
    assert "GPU 0 is given away to 180%" in found(TWO, one, one)
    assert found(TWO, {**one, "gpu_memory": 0.5}, {**one, "gpu_memory": 0.4}) == ""
    assert found(TWO, {**one, "devices": [0]}, {**one, "devices": [1]}) == ""
    assert "GPU 1 is given away" in found(TWO, {**one, "devices": [1]}, {**one, "replicas": [[0], [1]]})


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(100 * GIB)  # a hole
    huge = {"model": str(tmp_path)}
    assert "its weights are 100.0 GiB, the machine has 16.0 GiB" in found(CPU, huge)
    assert "more than 90% of one has: 72.0 GiB" in found(TWO, huge)
    assert found(TWO, {**huge, "tensor_parallel_size": 2}) == ""
    assert "more than 50%" in found(TWO, {**huge, "tensor_parallel_size": 2, "gpu_memory": 0.5})


def test_adapters(model: Path, tmp_path: Path) -> None:
    one = {"model": str(model), "adapters": {"legal": {"path": str(tmp_path)}}}
    assert "is no LoRA adapter" in found(CPU, one)
    (tmp_path / "adapter_config.json").write_text('{"r": 64}')
    assert "rank 64, more than max_lora_rank = 16" in found(CPU, one)
    assert "needs vLLM" in found(Machine(GIB, (), vllm=False), one)


@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
def test_names_that_vllm_does_not_know(model: Path, tmp_path: Path) -> None:
    assert "no tool parser nobody" in found(CPU, {"model": str(model), "tool_parser": "nobody"})
    assert "no engine option kv_cash" in found(CPU, {"model": str(model), "options": {"kv_cash": 1}})
    assert found(CPU, {"model": str(model), "tool_parser": "hermes", "options": {"max_num_seqs": 4}}) == ""
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in found(CPU, {"model": str(tmp_path), "options": {"max_num_seqs": 4}})
    assert found(CPU, {"model": str(tmp_path), "options": {"load_format": "dummy"}}) == ""


def test_servers_and_functions_take_nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = {"model": "big-1", "engine": "openai", "url": "http://127.0.0.1:1/v1"}
    assert found(TWO, server, server) == ""
    assert found(CPU, {"model": str(tmp_path / "no.py"), "engine": "function"}).endswith("there is no such Python file")
    (tmp_path / "answers.py").write_text("def answer(prompt, sampling): ...")
    assert found(CPU, {"model": str(tmp_path / "answers.py"), "engine": "function"}) == ""
    monkeypatch.delenv("FAR_KEY", raising=False)
    assert "the environment has no FAR_KEY" in found(CPU, {**server, "key_variable": "FAR_KEY"})


def test_a_server_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "workers.toml"
    (tmp_path / "big-1").mkdir()  # its name there is no folder here
    file.write_text(
        '[[models]]\nmodel = "big-1"\nengine = "openai"\nurl = "http://127.0.0.1:1/v1"\nprice = 0\n'
        'capability = ["text.generate", "text.embed"]\nprice_per_token = 0.5\nprice_per_input_token = 0.1\n'
    )
    assert invoke(["models", "check", str(file), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert (row["model"], row["capabilities"]) == ("big-1", ["text.generate", "text.embed"])
    assert (row["url"], row["weights"]) == ("http://127.0.0.1:1/v1", None)
    assert invoke(["models", "check", str(file)]) == 0
    assert "0 + 0.5 a token + 0.1 an input token" in capsys.readouterr().out


def test_numpy_cannot_do_all(model: Path) -> None:
    one = {"model": str(model), "engine": "numpy"}
    assert found(CPU, one) == ""
    assert "does not serve text.embed" in found(CPU, {**one, "capability": "text.embed"})
