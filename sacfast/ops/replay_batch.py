"""A batch from a replay memory that keeps one copy of each observation: sampling, with links resolved, in one pass."""

import torch
from torch import Tensor

from sacfast import native
from sacfast.config import OBS_DTYPES
from sacfast.errors import SACError
from sacfast.ops.checks import check_one_device, refusal
from sacfast.ops.philox import Key, as_key
from sacfast.ops.replay_sample import replay_sample, replay_sample_reference

OBS_TYPES = {name: getattr(torch, name) for name in OBS_DTYPES}  # in the order of csrc/transitions.h


def _check(obs: Tensor, action: Tensor, reward: Tensor, link: Tensor, side: Tensor) -> None:
    float32 = (torch.float32,)
    types = {"obs": tuple(OBS_TYPES.values()), "action": float32, "reward": float32, "link": (torch.int32,)}
    for tensor, (name, expected) in zip((obs, action, reward, link), types.items(), strict=True):
        if tensor.dtype not in expected or tensor.device != obs.device:
            raise SACError(
                f"replay_batch: {name} is {tensor.dtype} on {tensor.device}; expected "
                f"{' or '.join(map(str, expected))} on {obs.device}"
            )
    if side.dtype != obs.dtype or side.device != obs.device or side.shape[1:] != obs.shape[1:]:
        raise SACError(
            f"replay_batch: side is {side.dtype} {list(side.shape)} on {side.device}; expected {obs.dtype} "
            f"[S, {obs.shape[-1]}] on {obs.device} like obs"
        )


def _resolve(rows: tuple[Tensor, ...], obs: Tensor, side: Tensor) -> tuple[Tensor, ...]:
    """(obs, action, reward, link) of a batch -> (obs, action, reward, next_obs, terminated), float32."""
    first, action, reward, link = rows
    obs, side, N = obs.detach(), side.detach(), len(obs)
    terminated = link < 0
    at = torch.where(terminated, ~link, link).long()
    next_obs = obs[at.clamp(max=N - 1)]
    if len(side):
        next_obs = torch.where((at < N)[:, None], next_obs, side[(at - N).clamp(min=0)])
    return first.float(), action, reward, next_obs.float(), terminated.float()


def replay_batch_reference(
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    link: Tensor,
    side: Tensor,
    size: int,
    batch_size: int,
    key: Key,
) -> tuple[Tensor, ...]:
    """Rows at replay_sample_reference's indices; see replay_batch."""
    _check(obs, action, reward, link, side)
    rows, _ = replay_sample_reference([obs, action, reward, link], size, batch_size, key)
    return _resolve(rows, obs, side)


def replay_batch(
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    link: Tensor,
    side: Tensor,
    size: int,
    batch_size: int,
    key: Key,
) -> tuple[Tensor, ...]:
    """Draw `batch_size` transitions, with replacement, from the first `size` rows of a replay memory.

    obs [N, O], side [S, O]: float32, float16 or bfloat16, each row contiguous; action [N, A], reward [N]: float32;
    link [N]: int32, one device. The observation after row i is obs[v] where v < N, else side[v - N], with v = link[i],
    or ~link[i] (then link[i] < 0) where the transition terminated.

    Returns (obs [B, O], action [B, A], reward [B], next_obs [B, O], terminated [B]), float32. The indices are
    replay_sample's. Links are not checked: one beyond N + S reads foreign memory. Raises SACError as replay_sample
    does.
    """
    if obs.device.type != "cpu" or not native.available("cpu"):
        _check(obs, action, reward, link, side)
        rows, _ = replay_sample([obs, action, reward, link], size, batch_size, key)
        return _resolve(rows, obs, side)
    if not isinstance(key, Tensor):
        key = as_key(key, obs.device)
    try:
        batch = torch.ops.sacfast.replay_batch.default(obs, action, reward, link, side, size, batch_size, key)
    except (ValueError, NotImplementedError) as error:
        raise refusal(error) from None
    return tuple(batch)


def _register() -> None:
    @torch.library.register_fake("sacfast::replay_batch")
    def _(obs, action, reward, link, side, size, batch_size, key):
        check_one_device("replay_batch", [obs, action, reward, link, side, key])
        shapes = ((obs.shape[1],), (action.shape[1],), (), (obs.shape[1],), ())
        return [reward.new_empty((batch_size, *shape)) for shape in shapes]


native.on_load(_register)
