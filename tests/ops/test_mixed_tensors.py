"""Tensors that do not go together, have no memory, or are of rare types: refused, or computed all the same."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sacfast import SACError
from sacfast.ops import polyak_update_, random_key, replay_insert_, replay_sample, squashed_gaussian
from sacfast.ops.replay_batch import replay_batch

KEY = (1, 2, 3)


def on_meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


@pytest.mark.parametrize(
    "call",
    [
        lambda: polyak_update_([torch.zeros(3), torch.zeros(2)], [torch.ones(3), on_meta(2)], 0.5),
        lambda: replay_insert_([torch.zeros(4, 2)], [on_meta(1, 2)], 0),
        lambda: replay_sample([torch.zeros(4), on_meta(4)], 4, 2, KEY),
        lambda: replay_sample([torch.zeros(4)], 4, 2, random_key(*KEY, "meta")),
        lambda: squashed_gaussian(torch.zeros(4, 2), on_meta(4, 2), key=KEY),
        lambda: squashed_gaussian(torch.zeros(4, 2), torch.zeros(4, 2), key=random_key(*KEY, "meta")),
        lambda: replay_batch(
            torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, dtype=torch.int32), on_meta(1, 2),
            4, 2, KEY,
        ),
    ],
)  # fmt: skip
def test_a_tensor_without_memory_among_others_is_refused(call):
    """PyTorch asks an operator's fake then, and would take what that returns for the result."""
    with pytest.raises(SACError, match="meta"):
        call()


def test_tensors_without_memory_have_shapes():
    action, log_prob = squashed_gaussian(on_meta(4, 2), on_meta(4, 2), noise=on_meta(4, 2))
    assert (action.shape, log_prob.shape, action.device.type) == ((4, 2), (4,), "meta")
    polyak_update_(on_meta(3), on_meta(3), 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fake_tensors_do_not_overlap(dtype):
    with FakeTensorMode():
        target = torch.zeros(3, dtype=dtype)
        polyak_update_([target, target.clone()], [torch.ones(3, dtype=dtype)] * 2, 0.5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_few_bits_are_averaged_in_float32(dtype):
    target = torch.zeros(3).to(dtype)
    polyak_update_(target, torch.ones(3).to(dtype), 0.5)
    assert target.float().tolist() == [0.5] * 3


def test_under_autocast_a_log_std_of_float32_goes_with_a_mean_of_bfloat16():
    layer, log_std = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.zeros(2))
    with torch.autocast("cpu", torch.bfloat16):
        mean = layer(torch.ones(4, 3))
        assert mean.dtype == torch.bfloat16
        action, log_prob = squashed_gaussian(mean, log_std.expand_as(mean), key=KEY)
    expected = squashed_gaussian(mean.float(), log_std.expand_as(mean), key=KEY)
    assert torch.equal(action, expected[0]) and torch.equal(log_prob, expected[1])
    (action.sum() + log_prob.sum()).backward()
    assert layer.weight.grad is not None and log_std.grad is not None


@pytest.mark.parametrize("name", ["obs", "action", "reward", "link", "side"])
def test_a_replay_memory_of_other_types_is_refused_with_and_without_native_code(name, monkeypatch):
    tensors = {
        "obs": torch.zeros(4, 2),
        "action": torch.zeros(4, 1),
        "reward": torch.zeros(4),
        "link": torch.zeros(4, dtype=torch.int32),
        "side": torch.zeros(1, 2),
    }
    tensors[name] = tensors[name].double()
    with pytest.raises(SACError, match=name):
        replay_batch(*tensors.values(), 4, 2, KEY)
    monkeypatch.setattr("sacfast.native.available", lambda device="cpu": False)
    with pytest.raises(SACError, match=f"{name} is torch.float64"):
        replay_batch(*tensors.values(), 4, 2, KEY)
