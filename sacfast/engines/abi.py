"""The C interface of csrc/engine.cpp and cuda/engine.cu for ctypes.

The structs are those of csrc/engine.h, sac_math.h and transitions.h, field by field.
"""

import ctypes
import weakref
from ctypes import c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any

from sacfast.config import MOST_HIDDEN_LAYERS
from sacfast.replay import FIELDS


def _fields(*groups: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [(name, kind) for names, kind in groups for name in names.split()]


class LayerSpec(ctypes.Structure):
    _fields_ = _fields(("weight bias outputs inputs", c_int64))


class LogStdBounds(ctypes.Structure):
    _fields_ = [("low", c_float), ("high", c_float), ("rescaled", c_int32)]


class UpdateSpec(ctypes.Structure):
    _fields_ = _fields(
        ("obs_dim action_dim hidden_layers threads", c_int64),
        ("actor", LayerSpec * (MOST_HIDDEN_LAYERS + 2)),
        ("critic", LayerSpec * (MOST_HIDDEN_LAYERS + 1) * 2),
        ("lr", c_double * 3),
        ("gamma tau beta1 beta2 epsilon target_entropy", c_double),
        ("log_std", LogStdBounds),
        ("learn_alpha actor_update_period", c_int64),
    )


class StatePointers(ctypes.Structure):
    _fields_ = _fields(
        ("actor critic critic_target log_alpha", c_void_p),
        ("actor_m actor_v critic_m critic_v alpha_m alpha_v", c_void_p),
        ("seed step actor_adam_step critic_adam_step alpha_adam_step", c_int64),
    )


class Transitions(ctypes.Structure):
    _fields_ = _fields(
        (" ".join((*FIELDS, "link")), c_void_p),
        (" ".join(f"{name}_stride" for name in (*FIELDS, "link")), c_int64),
        ("size capacity obs_type", c_int64),
    )


class ObsStatistics(ctypes.Structure):
    _fields_ = _fields(("shift scale", c_void_p))


class UpdateCall(ctypes.Structure):
    _fields_ = _fields(
        ("state", StatePointers),
        ("transitions", Transitions),
        ("statistics", ObsStatistics),
        ("batch_size updates", c_int64),
        ("next_noise noise metrics", c_void_p),
        ("repack", c_int64),
    )


class PolicySpec(ctypes.Structure):
    _fields_ = _fields(
        ("obs_dim action_dim hidden_layers", c_int64),
        ("actor", LayerSpec * (MOST_HIDDEN_LAYERS + 2)),
        ("log_std", LogStdBounds),
        ("low high", c_void_p),
    )


class PolicyCall(ctypes.Structure):
    _fields_ = _fields(
        ("statistics", ObsStatistics),
        ("params obs action", c_void_p),
        ("n seed stream step deterministic bad", c_int64),
    )


SIGNATURES = {
    "sacfast_error": (c_char_p,),
    "sacfast_arithmetic": (c_void_p, c_char_p, c_char_p),
    "sacfast_arithmetic_path": (c_char_p, c_void_p),
    "sacfast_arithmetic_names": (c_char_p,),
    "sacfast_update_new": (c_void_p, c_void_p, c_void_p),
    "sacfast_update_delete": (None, c_void_p),
    "sacfast_update_run": (c_int, c_void_p, c_void_p),
    "sacfast_update_start": (c_int, c_void_p, c_void_p),
    "sacfast_update_finish": (c_int, c_void_p),
    "sacfast_update_set_profiling": (None, c_void_p, c_int),
    "sacfast_update_take_profile": (None, c_void_p, c_void_p),
    "sacfast_policy_new": (c_void_p, c_void_p, c_void_p),
    "sacfast_policy_delete": (None, c_void_p),
    "sacfast_policy_act": (None, c_void_p, c_void_p),
}

CUDA_SIGNATURES = {
    "sacfast_error": (c_char_p,),
    "sacfast_cuda_update_new": (c_void_p, c_void_p, c_char_p),
    "sacfast_cuda_update_delete": (None, c_void_p),
    "sacfast_cuda_update_workspace_bytes": (c_int64, c_void_p, c_int64),
    "sacfast_cuda_update_run": (c_int, c_void_p, c_void_p, c_void_p, c_void_p),
    "sacfast_cuda_update_settle": (c_int, c_void_p, c_void_p, c_void_p),
    "sacfast_cuda_update_profile": (c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "sacfast_cuda_update_phases": (c_int64, c_void_p),
    "sacfast_cuda_update_phase": (c_char_p, c_void_p, c_int64),
    "sacfast_cuda_policy_act": (c_int, c_void_p, c_void_p, c_void_p),
}


def declare(library: ctypes.CDLL, signatures: dict[str, tuple] = SIGNATURES) -> ctypes.CDLL:
    """`library` with the types of its functions."""
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def free_with(owner: object, delete: Any, handle: int) -> weakref.finalize:
    """Call delete(handle) when `owner` goes, or on demand; not at exit, where a thread may still be using it."""
    finalizer = weakref.finalize(owner, delete, handle)
    finalizer.atexit = False
    return finalizer
