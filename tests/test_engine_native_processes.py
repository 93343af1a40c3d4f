"""The native engine among other threads, in forked and dying processes, under signals, and out of memory."""

import copy
import functools
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from agents import make_agent, state_bytes

from sacfast.agent import SACAgent
from sacfast.errors import SACError
from sacfast.state import SACState

pytestmark = pytest.mark.native


def hash_of(state: SACState) -> str:
    """Short enough for a pipe that nobody reads yet."""
    return hashlib.sha256(b"".join(state_bytes(state).values())).hexdigest()


def test_an_agent_that_was_sent_to_another_process_goes_on_here():
    """multiprocessing moves the memory of every tensor that it sends, in place."""
    agents = [SACAgent(5, 3, 16, seed=0, engine="native", threads=1, normalize_obs=True) for _ in range(2)]
    rng = np.random.default_rng(0)
    obs, actions = rng.normal(size=(60, 5)), rng.uniform(-1, 1, (60, 3))
    for i in range(59):
        for agent in agents:
            agent.replay_buffer.push(obs[i], actions[i], float(i), obs[i + 1], False)
            if i >= 40:
                agent.train(1, 16)
        if i == 50:
            sent = ForkingPickler.dumps(agents[0])
    assert sent and state_bytes(agents[0].state) == state_bytes(agents[1].state)
    for name, tensor in agents[1].normalizer.named_tensors().items():
        assert torch.equal(agents[0].normalizer.named_tensors()[name], tensor)
    first, second = (agent.replay_buffer.segment() for agent in agents)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_two_agents_at_once_do_not_disturb_one_another():
    agents = [make_agent(engine="native", seed=seed, threads=2) for seed in (1, 2)]
    alone = [copy.deepcopy(agent) for agent in agents]
    running = [
        threading.Thread(target=lambda a=agent: [a.train(1, 40) for _ in range(50)]) for agent in agents
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for agent, expected in zip(agents, alone, strict=True):
        expected.train(50, 40)
        assert state_bytes(agent.state) == state_bytes(expected.state)


@pytest.mark.timeout(300)  # it would hang for ever
@pytest.mark.filterwarnings("ignore:threads=")
@pytest.mark.parametrize("threads", [5, 8, 13])
def test_threads_that_have_no_piece_of_a_phase(threads):
    """The actor's last layer costs more than a thread's share of its step, so that the last threads have none."""
    few, many = (make_agent((17, 6, (256,), 32), engine="native", threads=n) for n in (1, threads))
    for agent in (few, many):
        agent.train(400, 32)
    assert state_bytes(few.state) == state_bytes(many.state)


class Interrupted:
    """A library whose start() is interrupted by Ctrl-C before it begins, or as it returns."""

    def __init__(self, library, begins):
        self.library, self.begins = library, begins

    def __getattr__(self, name):
        return getattr(self.library, name)

    def sacfast_update_start(self, *arguments):
        if self.begins:
            self.library.sacfast_update_start(*arguments)
        raise KeyboardInterrupt


@pytest.mark.parametrize("begins", [True, False])
def test_an_interrupt_as_updates_are_started_leaves_weights_and_counters_together(begins):
    agent, twin = make_agent(engine="native", threads=2), make_agent(engine="native", threads=2)
    library = agent.engine._library
    agent.engine._library = Interrupted(library, begins)
    with pytest.raises(KeyboardInterrupt):
        agent.start(20, 40)
    agent.engine._library = library
    assert agent.training_steps == (20 if begins else 0)
    agent.train(3, 40)
    twin.train(agent.training_steps, 40)
    assert agent.state.counters() == twin.state.counters()
    assert state_bytes(agent.state) == state_bytes(twin.state)


@pytest.mark.timeout(60)
def test_a_signal_handler_that_would_wait_for_ever_is_told(request, tmp_path):
    """As on clusters, where a signal announces the end of a job."""
    said = []

    def save(*_):
        try:
            agent.save(tmp_path / "agent.safetensors")
        except SACError as error:
            said.append(str(error))

    request.addfinalizer(functools.partial(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1)))
    signal.signal(signal.SIGUSR1, save)
    agent = make_agent(engine="native")
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    for _ in range(100):
        agent.train(500, 40)
        if said:
            break
    (text,) = said
    assert "an update is under way in this very thread: let a signal handler set a flag" in text
    agent.save(tmp_path / "agent.safetensors")
    assert agent.training_steps % 500 == 0


def _drop_engine_in_child(agent):
    agent.engine._free()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_an_update_can_drop_the_engine():
    agent = make_agent(engine="native", threads=2)
    finish = agent.start(3000, 40)
    child = multiprocessing.get_context("fork").Process(target=_drop_engine_in_child, args=(agent,))
    child.start()
    child.join(30)
    code = child.exitcode
    child.kill()
    finish()
    assert (code, agent.training_steps) == (0, 3000)


def _train_in_child(agent, results):
    agent.train(3, 40)
    results.put(hash_of(agent.state))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_survives_a_fork():
    agent = make_agent(engine="native", threads=2)
    agent.train(2, 40)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_train_in_child, args=(agent, results))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    found = results.get()
    agent.train(3, 40)
    assert found == hash_of(agent.state)


def _act_in_child(agent):
    agent.select_action(np.zeros(5))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_an_action_can_act():
    agent = make_agent(engine="native")
    agent.select_action(np.zeros(5))
    with agent._policy.lock:  # as a robot's thread has it
        child = multiprocessing.get_context("fork").Process(target=_act_in_child, args=(agent,))
        child.start()
        child.join(30)
        code = child.exitcode
        child.kill()
    assert code == 0


def test_the_process_ends_though_the_engine_lives():
    code = """
import numpy as np, sacfast
agent = sacfast.SACAgent(3, 2, 16, engine="native", threads=2, seed=0)
agent.replay_buffer.push_batch(np.zeros((50, 3)), np.zeros((50, 2)), np.zeros(50), np.zeros((50, 3)), np.zeros(50))
agent.train(3, 32)
print(agent.training_steps)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr


def test_denormals_are_flushed_in_the_engine_alone():
    tiny = torch.tensor([1e-40])
    agent = make_agent(engine="native", threads=2)
    agent.state.critic_adam.exp_avg_sq.fill_(1e-40)
    with torch.no_grad():
        for layer in (agent.critic.fc1, agent.critic.fc3):  # dead units: no gradient reaches their weights
            layer.weight.zero_()
            layer.bias.fill_(-1)
    agent.train(1, 40)
    for critic in agent.state.critic_layers:  # one for each thread
        first = critic[0]
        dead = agent.state.critic_adam.exp_avg_sq[first.weight_offset :][: first.outputs * first.inputs]
        assert torch.count_nonzero(dead) == 0
    assert (tiny * 0.5).item() > 0


def test_an_interrupt_leaves_weights_and_counters_together(request):
    # Programs that a shell starts in the background are born with SIGINT ignored.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    agent, twin = make_agent(engine="native"), make_agent(engine="native")
    agent.train(1, 40)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        for _ in range(100):
            agent.train(500, 40)
    timer.join()
    assert agent.training_steps > 1
    twin.train(agent.training_steps, 40)
    assert agent.state.counters() == twin.state.counters()
    assert state_bytes(agent.state) == state_bytes(twin.state)
    agent.train(1, 40)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_running_out_of_memory_loses_nothing():
    code = """
import copy, resource
import numpy as np, sacfast
from pathlib import Path
agent = sacfast.SACAgent(3, 2, 1024, engine="native", threads=1, seed=0, buffer_capacity=8192)
rng = np.random.default_rng(0)
obs, action, reward = rng.random((8192, 3)), rng.random((8192, 2)), rng.random(8192)
agent.replay_buffer.push_batch(obs, action, reward, obs, np.zeros(8192))
twin = copy.deepcopy(agent)
for one in (agent, twin):
    one.train(1, 32)
agent.critic.fc1.weight.data.mul_(2), twin.critic.fc1.weight.data.mul_(2)
agent.engine.sync(), twin.engine.sync()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
try:
    agent.train(1, 8192)
except sacfast.SACError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for one in (agent, twin):
    one.train(1, 32)
print(agent.state.critic_params.equal(twin.state.critic_params), agent.training_steps)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == [
        "the native update failed: out of memory (batch_size=8192; a smaller one needs less)",
        "True 2",
    ], done.stderr
