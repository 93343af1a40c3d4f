"""The native operators and their PyTorch references, usable in any PyTorch code.

Each public function runs the C++ or CUDA operator where it is available for the device and dtype, and the
reference beside it (`x_reference`) elsewhere. Importing this package compiles nothing; the first call may.
"""

from sacfast.ops.philox import (
    Stream,
    indices_reference,
    normal,
    normal_reference,
    philox4x32_reference,
    random_key,
)
from sacfast.ops.polyak_update import polyak_update_, polyak_update_reference_
from sacfast.ops.replay_batch import replay_batch, replay_batch_reference
from sacfast.ops.replay_sample import (
    replay_insert_,
    replay_insert_reference_,
    replay_sample,
    replay_sample_reference,
)
from sacfast.ops.squashed_gaussian import squashed_gaussian, squashed_gaussian_reference

__all__ = [
    "Stream",
    "indices_reference",
    "normal",
    "normal_reference",
    "philox4x32_reference",
    "polyak_update_",
    "polyak_update_reference_",
    "random_key",
    "replay_batch",
    "replay_batch_reference",
    "replay_insert_",
    "replay_insert_reference_",
    "replay_sample",
    "replay_sample_reference",
    "squashed_gaussian",
    "squashed_gaussian_reference",
]
