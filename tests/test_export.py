"""Exported policies act as the agent does, in other programs, and a file that would not is never put in place."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tolerances import EXPORT

import sacfast
from sacfast.agent import SACAgent
from sacfast.errors import CheckpointError, SACError
from sacfast.export import FORMATS, DeterministicPolicy
from sacfast.export.__main__ import main
from sacfast.networks import ActorNetwork
from sacfast.runs import write_config

module = importlib.import_module("sacfast.export")  # the package's attribute of this name is the function
README = Path(__file__).parent.parent / "README.md"
LOW, HIGH = np.array([-2.0, 0.0, 1.0], np.float32), np.array([2.0, 1.0, 5.0], np.float32)


def new_agent(widths=(16, 32, 8)):
    """With layers of different widths, and actions that reach the bounds."""
    agent = SACAgent(5, 3, widths, seed=0, action_low=LOW, action_high=HIGH, engine="reference")
    with torch.no_grad():
        agent.actor.mean.weight.mul_(200)
        agent.actor.mean.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return agent


@pytest.fixture(scope="module")
def agent():
    return new_agent()


def observations(n):
    return np.random.default_rng(n).standard_normal((n, 5), np.float32) * 2


def assert_acts_as(agent, act, sizes=(0, 1, 2, 7, 300)):
    for n in sizes:
        wanted = agent.select_action(observations(n), evaluate=True)
        np.testing.assert_allclose(
            act(observations(n)) / (HIGH - LOW), wanted / (HIGH - LOW), atol=EXPORT, rtol=0
        )
    assert (wanted / (HIGH - LOW)).std(axis=0).min() > 0.1  # the policy looks at its observations
    assert (act(observations(300)) >= LOW).all()
    assert (act(observations(300)) <= HIGH).all()


def test_onnx_runs_in_onnxruntime_for_any_batch(agent, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: test)")
    path = sacfast.export(agent, tmp_path / "policy.onnx")
    assert os.listdir(tmp_path) == ["policy.onnx"]  # the weights are in it
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (obs,), (action,) = session.get_inputs(), session.get_outputs()
    assert (obs.name, obs.shape, obs.type) == ("obs", ["n", 5], "tensor(float)")
    assert (action.name, action.shape, action.type) == ("action", ["n", 3], "tensor(float)")
    assert_acts_as(agent, lambda obs: session.run(None, {"obs": obs})[0])


def test_pt2_runs_for_any_batch(agent, tmp_path):
    program = torch.export.load(sacfast.export(agent, tmp_path / "policy.pt2")).module()
    assert_acts_as(agent, lambda obs: program(torch.from_numpy(obs)).numpy())


def readme_loader():
    """README's reader of policy.safetensors."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (text for text in blocks if "def load_policy" in text)
    return block


@pytest.mark.skipif(not README.exists(), reason="README.md is not beside tests/")
def test_readmes_loader_needs_neither_sacfast_nor_torch(agent, tmp_path):
    block = readme_loader()
    path = sacfast.export(agent, tmp_path / "policy.safetensors")
    assert len(block.splitlines()) <= 30
    np.save(tmp_path / "obs.npy", observations(9))
    code = f"""
import sys
sys.modules["sacfast"] = sys.modules["torch"] = None  # importing either raises ImportError
{block}
policy, obs = load_policy({str(path)!r}), np.load("obs.npy")
np.save("actions.npy", policy(obs))
np.save("action.npy", policy(obs[0].tolist()))
"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    wanted = agent.select_action(observations(9), evaluate=True)
    actions, action = np.load(tmp_path / "actions.npy"), np.load(tmp_path / "action.npy")
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions / (HIGH - LOW), wanted / (HIGH - LOW), atol=EXPORT, rtol=0)
    np.testing.assert_allclose(action / (HIGH - LOW), wanted[0] / (HIGH - LOW), atol=EXPORT, rtol=0)


@pytest.mark.skipif(not README.exists(), reason="README.md is not beside tests/")
def test_readmes_loader_normalises_observations(agent, tmp_path):
    path, mean, std = tmp_path / "policy.safetensors", torch.arange(5.0), torch.arange(1.0, 6.0)
    FORMATS[path.suffix][0](DeterministicPolicy(agent.actor, agent.bounds, mean, std), path)
    names = {}
    exec(readme_loader(), names)
    act = names["load_policy"](path)
    assert_acts_as(agent, lambda obs: act(obs * std.numpy() + mean.numpy()))


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_the_statistics_of_an_agent_that_normalises_go_along(tmp_path, suffix):
    agent = SACAgent(
        5, 3, 16, seed=0, action_low=LOW, action_high=HIGH, engine="reference", normalize_obs=True
    )
    agent.normalizer.update(np.random.default_rng(0).normal([0, 5, -1, 0, 0], [1, 3, 0.01, 1, 1], (100, 5)))
    path = sacfast.export(agent, tmp_path / f"policy{suffix}")
    obs = np.concatenate([observations(50), 1e3 * observations(5)])  # clipped ones too
    act = FORMATS[suffix][1](
        DeterministicPolicy(agent.actor, agent.bounds, *agent.normalizer.mean_and_std()), path
    )
    np.testing.assert_allclose(act(obs), agent.select_action(obs, evaluate=True), atol=EXPORT * 4, rtol=0)


def test_the_module_is_a_copy(agent):
    actor = ActorNetwork(5, 3, (4,))
    policy = DeterministicPolicy(actor, agent.bounds)
    before = policy(torch.ones(1, 5))
    with torch.no_grad():
        actor.mean.bias.add_(1)
    assert torch.equal(policy(torch.ones(1, 5)), before)
    assert not any("log_std" in name for name in policy.state_dict())


def test_another_policy_is_not_put_in_place(agent, tmp_path, monkeypatch):
    path = tmp_path / "policy.safetensors"
    path.write_bytes(b"earlier")

    def write(policy, temporary):
        policy.mean.bias[1] += 1e-3
        FORMATS[".pt2"][0](policy, temporary)

    monkeypatch.setitem(module.FORMATS, ".safetensors", (write, FORMATS[".pt2"][1]))
    with pytest.raises(
        SACError, match=r"policy.safetensors was not written: its actions differ from the agent's by"
    ):
        sacfast.export(agent, path)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["policy.safetensors"]


@pytest.mark.native
def test_a_head_that_the_agent_does_not_act_with_is_refused(tmp_path):
    agent = SACAgent(5, 3, 8, engine="native")
    agent.actor.mean = torch.nn.Linear(8, 3)
    with pytest.raises(SACError, match="a new layer took their place"):
        module.export(agent, tmp_path / "policy.safetensors")


def test_a_policy_that_is_no_number_is_refused(tmp_path):
    agent = new_agent((4,))
    with torch.no_grad():
        agent.actor.mean.bias[0] = float("nan")
    with pytest.raises(SACError, match="differ from the agent's by nan"):
        sacfast.export(agent, tmp_path / "policy.safetensors")


def test_a_missing_package_is_named_with_the_remedy(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SACError, match=r"no ONNX: onnxscript not installed; pip install 'sacfast\[onnx\]'"):
        sacfast.export(agent, tmp_path / "policy.onnx")
    assert os.listdir(tmp_path) == []


def test_an_exporter_that_fails_is_one_sentence(agent, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise TypeError("no such operator\nlong story")

    monkeypatch.setattr(module, "find_spec", lambda name: name)  # the packages need not be there
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(SACError, match=r"torch's exporter failed \(no such operator\)"):
        sacfast.export(agent, tmp_path / "policy.onnx")


@pytest.mark.parametrize("name", ["policy.pt", "policy", "policy.ONNX.zip"])
def test_unknown_formats_are_refused(agent, tmp_path, name):
    with pytest.raises(SACError, match=r"is no format of exports; name a file .onnx, .pt2, .safetensors"):
        sacfast.export(agent, tmp_path / name)


def test_a_checkpoint_is_never_overwritten(agent, tmp_path):
    path = tmp_path / "best.safetensors"
    agent.save(path, replay_buffer=False)
    before = path.read_bytes()
    with pytest.raises(SACError, match="best.safetensors is an agent's checkpoint"):
        sacfast.export(agent, path)
    assert path.read_bytes() == before
    sacfast.export(agent, tmp_path / "policy.safetensors")
    sacfast.export(agent, tmp_path / "policy.safetensors")  # an export may be


def test_a_folder_that_is_not_there(agent, tmp_path):
    with pytest.raises(SACError, match=r"cannot write .*nowhere/policy.pt2 \(No such file"):
        sacfast.export(agent, tmp_path / "nowhere" / "policy.pt2")


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_a_full_disk_is_one_sentence(agent, tmp_path, suffix):
    """A limit on the size of files, in a process of its own, stands for it."""
    agent.save(tmp_path / "agent.safetensors", replay_buffer=False)
    script = f"""
import resource, signal, sacfast
agent = sacfast.SACAgent.from_checkpoint({str(tmp_path / "agent.safetensors")!r}, engine="reference")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    sacfast.export(agent, {str(tmp_path / f"policy{suffix}")!r})
except sacfast.SACError as error:
    print(error, flush=True)
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.startswith(f"cannot write {tmp_path / f'policy{suffix}'} ("), result
    assert not (tmp_path / f"policy{suffix}").exists()


@pytest.fixture
def run(tmp_path):
    config = sacfast.TrainConfig(env="Pendulum-v1", sac=sacfast.SACConfig(hidden_dim=8, batch_size=16))
    agent = SACAgent.from_env(
        gymnasium.make("Pendulum-v1"), seed=1, engine="reference", **config.sac.to_dict()
    )
    write_config(tmp_path, config)
    agent.save(tmp_path / "best.safetensors", replay_buffer=False, extra={"step": 1234})
    return tmp_path


def test_a_run_is_exported_from_python(run):
    path = sacfast.export(str(run), run / "policy.safetensors")
    assert path == run / "policy.safetensors"
    with pytest.raises(CheckpointError, match=r"has no checkpoint"):
        sacfast.export(run, path, checkpoint="last")
    with pytest.raises(SACError, match="is not the folder of a run"):
        sacfast.export(run / "absent", path)


def test_the_command_and_the_function_share_their_name(run):
    """In a process of its own, where Python would warn of a module that `import sacfast` has run already."""
    assert importlib.import_module("sacfast.export") is sys.modules["sacfast.export"]
    assert sacfast.export is module.export
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "sacfast.export", str(run)]
    result = subprocess.run([*command, str(run / "p.pt2")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Pendulum-v1 (best policy, step 1,234), obs [n, 3] -> action [n, 1]" in result.stdout
    assert torch.export.load(run / "p.pt2").module()(torch.zeros(4, 3)).shape == (4, 1)


def test_the_commands_errors_are_one_line(run, capsys):
    assert main([str(run), str(run / "p.txt")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert main([str(run), str(run / "p.pt2"), "--checkpoint", "last"]) == 2  # the best would be there
    assert "has no checkpoint" in capsys.readouterr().err
