"""README's Python runs as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest
import torch

from sacfast import evaluate
from sacfast.run_folder import latest

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="README.md is not beside tests/")


def run_block(containing: str, instead: dict[str, str], **names) -> dict:
    """Execute README's block of Python that has this text, with some of it replaced. Returns its variables."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (text for text in blocks if containing in text)
    for old, new in instead.items():
        assert old in block, f"README no longer has {old!r}"
        block = block.replace(old, new)
    exec(compile(block, str(README), "exec"), names)
    return names


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_policy_of_ones_own_environment_and_a_trained_one(monkeypatch):
    steps = {"steps=50_000": "steps=300, learning_starts=200, eval_episodes=1", "episodes=20": "episodes=1"}
    run = run_block("def make_robot", steps)["run"]
    assert latest(run).name == "000000300"
    filmed = []
    monkeypatch.setattr(evaluate, "record_video", lambda agent, env, path: filmed.append((agent, env, path)))
    path = {'"runs/Pusher-v5/20260101-120000-s0"': repr(str(run)), "episodes=20": "episodes=1"}
    found = run_block("record_video(", path)
    assert filmed == [(found["agent"], "Pusher-v5", "pusher.mp4")] and found["action"].shape == (7,)


def test_training_by_hand():
    found = run_block("agent.replay_buffer.push(", {"10_000": "150", "5_000": "130"})
    agent = found["agent"]
    assert (agent.training_steps, agent.replay_buffer.size) == (40, 150)
    assert agent.config.batch_size == 128 and Path("agent.safetensors").exists()


def test_tensors_that_stay_on_their_device():
    less = {
        'TrainConfig(device="cuda", steps=200_000': 'TrainConfig(device="cpu", steps=1024, learning_starts=512',
        'device="cuda"': 'device="cpu"',
    }
    run_block("TensorPendulum(256", less)
    (run,) = Path("runs").glob("*/*")
    assert latest(run).name == "000001024"


def test_the_operators():
    mean, log_std = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, 3)
    target, online = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    rings = {"obs_ring": torch.rand(10, 3), "action_ring": torch.rand(10, 2), "reward_ring": torch.rand(10)}
    found = run_block(
        "polyak_update_(", {}, mean=mean, log_std=log_std, target=target, online=online, size=10, **rings
    )
    assert found["log_prob"].shape == (4,) and found["log_prob"].requires_grad
    assert torch.equal(found["obs"], rings["obs_ring"][found["indices"]]) and len(found["action"]) == 256
