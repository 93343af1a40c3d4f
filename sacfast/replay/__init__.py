"""The replay memory: `buffer` is what a user sees and checks what is pushed, `ring` is how it lies in memory."""

from sacfast.replay.buffer import FIELDS, Batch, ReplayBuffer, as_float32

__all__ = ["FIELDS", "Batch", "ReplayBuffer", "as_float32"]
