"""What the tests of the operators share: inputs of every kind, gradients, and runs on several threads."""

from collections.abc import Callable

import torch


def replay_storage(N: int) -> list[torch.Tensor]:
    """Fields of every size of row, and of word, that the kernels treat differently, and of several dtypes."""
    return [
        torch.arange(N, dtype=torch.float32),
        torch.arange(N * 23, dtype=torch.float32).reshape(N, 23),
        torch.arange(N * 8, dtype=torch.float32).reshape(N, 8),
        torch.arange(N * 7, dtype=torch.float64).reshape(N, 7),
        (torch.arange(N) % 2).bool(),
        (torch.arange(N * 3) % 251).to(torch.uint8).reshape(N, 3),
        torch.arange(N * 6, dtype=torch.int32).reshape(N, 2, 3),
        torch.arange(N * 100, dtype=torch.float32).reshape(N, 4, 25),
        torch.arange(N * 5).to(torch.bfloat16).reshape(N, 5),
        torch.zeros(N, 0),
    ]


def values_and_gradients(function, mean, log_std, noise=None, **key) -> list[torch.Tensor]:
    """action, log_prob, and the gradients of a weighted sum of both, on the CPU."""
    mean, log_std = (x.clone().requires_grad_() for x in (mean, log_std))
    action, log_prob = function(mean, log_std, noise=noise, **key)
    weights = torch.linspace(-1, 2, action.numel(), dtype=action.dtype).reshape(action.shape)
    row_weights = torch.linspace(1, 2, len(log_prob), dtype=action.dtype)
    loss = (weights.to(mean.device) * action).sum() + (row_weights.to(mean.device) * log_prob).sum()
    return [x.detach().cpu() for x in (action, log_prob, *torch.autograd.grad(loss, (mean, log_std)))]


def on_each_thread_count(call: Callable[[], object]) -> list:
    """What `call` returns on one, two and three threads."""
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(call())
    return results
