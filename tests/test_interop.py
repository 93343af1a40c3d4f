"""from_sb3: a SAC of Stable-Baselines3 acts the same here, and goes on from the same moments and temperature."""

import base64
import collections
import copy
import io
import json
import pickle
import zipfile
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from tolerances import EXPORT

from sacfast.errors import CheckpointError, SACError
from sacfast.interop import from_sb3

LOW, HIGH = np.array([-2.0, 0.00123456789], np.float32), np.array([1.0, 0.3], np.float32)


def pickled(value, **details):
    """A value that JSON cannot hold, as Stable-Baselines3 writes it."""
    return {
        ":type:": str(type(value)),
        ":serialized:": base64.b64encode(pickle.dumps(value, protocol=5)).decode(),
        **details,
    }


def box(low, high, dtype=np.float32):
    space = gymnasium.spaces.Box(low, high, dtype=dtype)
    space.seed(0)  # its generator is pickled too
    text = {"dtype": str(space.dtype), "_shape": list(space.shape), "low": str(low), "high": str(high)}
    return pickled(space, **text)


def stack(name, sizes, generator):
    tensors = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        tensors[f"{name}.{2 * i}.weight"] = torch.randn(n_out, n_in, generator=generator)
        tensors[f"{name}.{2 * i}.bias"] = torch.randn(n_out, generator=generator)
    return tensors


def optimizer_of(tensors, generator, step=7):
    """The state of a torch.optim.Adam over `tensors`, in their order."""
    params = [torch.nn.Parameter(tensor.clone()) for tensor in tensors]
    adam = torch.optim.Adam(params, lr=1e-3)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    for _ in range(step):
        adam.step()
    return adam.state_dict()


def content(widths=(6, 4, 3), obs=5, learned=True):
    """The members of a saved SAC: `data` as a dictionary, the others as state dictionaries."""
    generator, last = torch.Generator().manual_seed(0), widths[-1]
    weights = stack("actor.latent_pi", [obs, *widths], generator)
    for head in ("mu", "log_std"):
        weights[f"actor.{head}.weight"] = torch.randn(len(LOW), last, generator=generator)
        weights[f"actor.{head}.bias"] = torch.randn(len(LOW), generator=generator)
    for network in ("critic", "critic_target"):
        for twin in range(2):
            weights |= stack(f"{network}.qf{twin}", [obs + len(LOW), *widths, 1], generator)
    members = {
        "data": {
            "policy_class": {
                ":type:": "<class 'abc.ABCMeta'>",
                "__module__": "stable_baselines3.sac.policies",
            },
            "policy_kwargs": {"net_arch": list(widths), "use_sde": False},
            "observation_space": box(-np.ones(obs), np.ones(obs), np.float64),
            "action_space": box(LOW, HIGH),
            "use_sde": False,
            "learning_rate": 0.001,
            "gamma": 0.9,
            "tau": 0.01,
            "target_entropy": -1.5,
            "buffer_size": 123,
            "batch_size": 32,
            "seed": 3,
            "_n_updates": 7,
            "target_update_interval": 1,
            "n_steps": 1,
        },
        "policy.pth": collections.OrderedDict(weights),
        "pytorch_variables.pth": {"log_ent_coef": torch.nn.Parameter(torch.tensor([-0.7]))},
        "ent_coef_optimizer.pth": optimizer_of([torch.zeros(1)], generator),
    }
    if not learned:
        members["pytorch_variables.pth"] = {"ent_coef_tensor": torch.tensor(0.05)}
        del members["ent_coef_optimizer.pth"]
    for network in ("actor", "critic"):
        tensors = [tensor for name, tensor in weights.items() if name.startswith(f"{network}.")]
        members[f"{network}.optimizer.pth"] = optimizer_of(tensors, generator)
    return members


def write(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            if name == "data":
                archive.writestr(name, json.dumps(value))
            else:
                buffer = io.BytesIO()
                torch.save(value, buffer)
                archive.writestr(name, buffer.getvalue())
    return path


def chain(weights, name, x, last):
    for i in range(last):
        x = torch.relu(x @ weights[f"{name}.{2 * i}.weight"].T + weights[f"{name}.{2 * i}.bias"])
    return x


@pytest.mark.parametrize("widths", [(6,), (6, 6), (6, 4, 3, 5)])
def test_actions_and_values_are_the_originals(tmp_path, widths):
    members = content(widths)
    agent = from_sb3(write(tmp_path / "sac.zip", members), engine="reference")
    weights, obs = members["policy.pth"], torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    hidden = chain(weights, "actor.latent_pi", obs, len(widths))
    unit = torch.tanh(hidden @ weights["actor.mu.weight"].T + weights["actor.mu.bias"]).numpy()
    action, state = agent.predict(obs.numpy(), deterministic=True)
    assert state is None
    wanted = LOW + 0.5 * (unit + 1) * (HIGH - LOW)
    np.testing.assert_allclose(action / (HIGH - LOW), wanted / (HIGH - LOW), atol=EXPORT, rtol=0)
    np.testing.assert_array_equal(agent.bounds.low, LOW)  # to the bit: the text beside it is rounded
    for network in ("critic", "critic_target"):
        values = getattr(agent, network)(obs, torch.from_numpy(unit))
        for twin in range(2):
            name, last = f"{network}.qf{twin}", 2 * len(widths)
            hidden = chain(weights, name, torch.cat([obs, torch.from_numpy(unit)], 1), len(widths))
            wanted = hidden @ weights[f"{name}.{last}.weight"].T + weights[f"{name}.{last}.bias"]
            torch.testing.assert_close(values[twin], wanted)


def test_the_rest_is_taken_over(tmp_path):
    members = content()
    write(tmp_path / "sac.zip", members)
    agent = from_sb3(tmp_path / "sac", engine="reference")  # SAC.load takes it without .zip too
    config, counters = agent.config, agent.state.counters()
    assert config.widths == (6, 4, 3)
    assert (config.lr, config.gamma, config.tau, config.target_entropy) == (0.001, 0.9, 0.01, -1.5)
    assert (config.automatic_entropy_tuning, config.buffer_capacity, config.batch_size) == (True, 123, 32)
    assert agent.log_alpha.item() == pytest.approx(-0.7)
    assert counters == {
        **{"seed": 3, "step": 7, "action_step": 0},
        **{f"{name}_adam_step": 7 for name in ("actor", "critic", "alpha")},
    }
    for name in ("actor", "critic"):
        adam, moments = getattr(agent.state, f"{name}_adam"), members[f"{name}.optimizer.pth"]["state"]
        for key in ("exp_avg", "exp_avg_sq"):
            flat = torch.cat([moments[i][key].reshape(-1) for i in range(len(moments))])
            assert torch.equal(getattr(adam, key), flat)
    assert agent.state.alpha_adam.exp_avg == members["ent_coef_optimizer.pth"]["state"][0]["exp_avg"]


def test_it_goes_on_learning(tmp_path):
    agent = from_sb3(write(tmp_path / "sac.zip", content()), engine="reference")
    rng = np.random.default_rng(0)
    for _ in range(20):
        obs, next_obs = rng.normal(size=(2, 5))
        agent.replay_buffer.push(obs, rng.uniform(LOW, HIGH), rng.normal(), next_obs, False)
    before = agent.state.actor_params.clone()
    agent.train(2, batch_size=8)
    assert agent.training_steps == 9
    assert not torch.equal(agent.state.actor_params, before)


def test_a_fixed_temperature_and_a_schedule_of_the_learning_rate(tmp_path):
    members = content(learned=False)
    members["data"]["learning_rate"] = pickled(print, value_schedule="...")
    agent = from_sb3(write(tmp_path / "sac.zip", members), engine="reference")
    assert not agent.automatic_entropy_tuning
    assert agent.alpha.item() == pytest.approx(0.05)
    assert agent.config.lr == 1e-3  # the optimizer's
    members["actor.optimizer.pth"]["param_groups"][0]["lr"] = 0.0  # at the end of a linear one
    told = "learning rate has come to 0; further training would have 0.0003"
    with pytest.warns(UserWarning, match=told) as caught:
        assert from_sb3(write(tmp_path / "sac.zip", members), engine="reference").config.lr == 3e-4
    assert caught[0].filename == __file__


def without(members, name):
    del members[name]


def tanh(members):
    members["data"]["policy_kwargs"] = {":type:": "<class 'dict'>", "activation_fn": str(torch.nn.Tanh)}


def rename(members, old, new):
    weights = members["policy.pth"]
    for name in list(weights):
        if name.startswith(old):
            weights[name.replace(old, new)] = weights.pop(name)


def setting(name, value):
    return lambda members: members["data"].__setitem__(name, value)


IMAGE = pickled(gymnasium.spaces.Box(0, 255, (3, 36, 36), np.uint8), _shape=[3, 36, 36])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["data"]["policy_class"].update(__module__="stable_baselines3.td3.policies"),
            "policy of stable_baselines3.td3.policies; Stable",
        ),
        (
            lambda m: m["data"]["policy_class"].update(__module__="sb3_contrib.tqc.policies"),
            "policy of sb3_contrib.tqc.policies; Stable",
        ),
        (
            setting("observation_space", IMAGE),
            r"observes a Box of shape \[3, 36, 36\], but sacfast needs a 1-D Box",
        ),
        (
            setting("observation_space", pickled(gymnasium.spaces.Discrete(3))),
            "observes a Discrete of shape None",
        ),
        (setting("use_sde", True), "use_sde=True"),
        (
            tanh,
            r"activation_fn=<class 'torch.nn.modules.activation.Tanh'>, but sacfast's networks have ReLU only",
        ),
        (
            setting("policy_kwargs", {"features_extractor_class": "<class 'my.Net'>"}),
            "features_extractor_class=<class",
        ),
        (lambda m: rename(m, "critic.qf1", "critic.qf2"), "sacfast has two"),
        (
            lambda m: m["policy.pth"].pop("critic.qf1.4.weight"),
            r"\[6, 4, 3\] in the policy and \[6, 4\] in a critic",
        ),
        (
            lambda m: rename(m, "actor.latent_pi.2", "actor.latent_pi.3"),
            "holds actor.latent_pi.3.*have no place",
        ),
        (
            lambda m: m["policy.pth"].update({"actor.scale": torch.ones(1)}),
            "holds actor.scale.*have no place",
        ),
        (lambda m: without(m, "policy.pth"), "holds no policy.pth; it was not saved by a SAC"),
        (lambda m: without(m, "data"), "holds no data"),
        (lambda m: without(m["data"], "gamma"), "is not laid out as Stable-Baselines3's SAC .*gamma"),
        (lambda m: m["policy.pth"].update({"actor.mu.weight": torch.ones(2, 9)}), "is not laid out as"),
        (lambda m: m["data"]["action_space"].update({":serialized:": "gASVAAAA"}), "is not laid out as"),
        (lambda m: m["data"]["action_space"].update(pickled([1, 2])), "is not laid out as"),
        (setting("gamma", 1.5), "gamma=1.5"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    members = copy.deepcopy(content())
    change(members)
    with pytest.raises(SACError, match=message) as caught:
        from_sb3(write(tmp_path / "sac.zip", members), engine="reference")
    assert "\n" not in str(caught.value)


def test_more_hidden_layers_than_sacfast_has(tmp_path):
    with pytest.raises(SACError, match="has 5 hidden layers; sacfast has 1 to 4"):
        from_sb3(write(tmp_path / "sac.zip", content((4,) * 5)))


def test_files_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        from_sb3(tmp_path / "absent.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(CheckpointError, match="is damaged or is no file of Stable-Baselines3"):
        from_sb3(tmp_path / "text.zip")
    path = write(tmp_path / "short.zip", content())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="is damaged"):
        from_sb3(path)


class Trap:
    """Unpickled for real, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["action_space", "policy.pth", "actor.optimizer.pth"])
def test_nothing_in_the_file_is_run(tmp_path, where):
    members, trap = content(), Trap(tmp_path / "trapped")
    if where == "action_space":
        members["data"]["action_space"] = pickled([trap])
    else:
        members[where]["trap"] = trap
    with pytest.raises(CheckpointError):
        from_sb3(write(tmp_path / "sac.zip", members))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("target_update_interval", 2), "target_update_interval=2; sacfast goes on with 1"),
        (
            lambda m: m["actor.optimizer.pth"]["param_groups"][0].update(weight_decay=0.1),
            "another optimizer than plain Adam",
        ),
        (
            lambda m: m["critic.optimizer.pth"]["param_groups"][0].pop("amsgrad"),  # as torch.optim.RAdam's
            "another optimizer than plain Adam",
        ),
        (
            lambda m: m["actor.optimizer.pth"].update(param_groups=[{"lr": 0.1, "momentum": 0.9}]),
            "another optimizer",
        ),
    ],
)
def test_what_only_training_feels_is_a_warning(tmp_path, change, message):
    members = content()
    change(members)
    with pytest.warns(UserWarning, match=message) as caught:
        from_sb3(write(tmp_path / "sac.zip", members), engine="reference")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "ent_coef"), [({}, "auto"), ({"net_arch": [64, 32, 16]}, "auto_0.5"), ({}, 0.1)]
)
def test_stable_baselines3_itself(tmp_path, options, ent_coef):
    """The real thing, trained a little: same deterministic actions for the same observations."""
    peer = pytest.importorskip("stable_baselines3", reason="stable_baselines3 is not installed")
    model = peer.SAC(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs=options,
        learning_starts=20,
        batch_size=16,
        buffer_size=100,
        ent_coef=ent_coef,
        device="cpu",
    )
    model.learn(60)
    model.save(tmp_path / "model")
    agent = from_sb3(tmp_path / "model")
    assert agent.config.batch_size == 16
    obs = np.random.default_rng(0).uniform(-2, 2, (100, 3)).astype(np.float32)
    ours, theirs = (each.predict(obs, deterministic=True)[0] for each in (agent, model))
    assert theirs.std() > 1e-3
    np.testing.assert_allclose(ours / 4, theirs / 4, atol=EXPORT, rtol=0)
    assert agent.training_steps == model._n_updates == 40
    moments = model.critic.optimizer.state_dict()["state"]
    flat = torch.cat([moments[i]["exp_avg"].reshape(-1) for i in range(len(moments))])
    assert torch.equal(agent.state.critic_adam.exp_avg, flat)
    score = peer.common.evaluation.evaluate_policy(agent, gymnasium.make("Pendulum-v1"), 1, warn=False)
    assert np.isfinite(score[0])
