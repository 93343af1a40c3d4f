"""The state of a Gymnasium environment in the middle of an episode: taken out, and put back into a fresh one.

What can be: MuJoCo environments on gymnasium.envs.mujoco.MujocoEnv, the classic-control ones, and any other that offers

    get_state() -> numbers, text, arrays, and lists, tuples and dictionaries of them
    set_state(state)                    of what get_state returned, in another process perhaps

together with their wrappers, as long as these hold such plain values alone, and functions that keep no objects. For any
other environment nobody can know where its state is kept (a simulator's memory, a connection), so `capture` refuses
rather than guess.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from sacfast.errors import first_line


class NotCapturable(Exception):
    """The environment's state cannot be taken out, or not be put back; the message says why."""


# What the constructor made for good, or what concerns pictures and the clock alone.
_CONSTANT_TYPES = (EnvSpec, ModuleType, type)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType)
_CONSTANT_NAMES = frozenset(
    {"env", "metadata", "mujoco_renderer", "render_mode"}
    | {"episode_start_time", "time_queue", "_previous_data", "_np_random"}
    | {"_metadata", "_cached_spec", "_action_space", "_observation_space"}
    | {"action_space", "observation_space"}  # vectorisers make generators of chance for these
    | {"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
)
_OF_PICTURES = frozenset({"screen", "clock", "surf", "isopen"})  # of pygame, unless they are numbers
# Keys that mark what stands for something that is not plain.
_SAME_AS, _VIEW_OF = "sacfast: the array that is also", "sacfast: a view of the array"
_DEQUE, _GENERATOR = "sacfast: deque", "sacfast: generator"
_TYPES = "?BHILbhilqQefd"  # of arrays, as NumPy's codes: truth values, integers and floats up to 64 bits
# Arrays of MjData as long as there are contacts: the next step makes them anew.
_OF_CONTACTS = ("efc_", "iefc_", "efm_", "island_", "map_", "iacc", "ifrc_")


@contextmanager
def _as_obstacle() -> Iterator[None]:
    """NotCapturable for whatever an environment's own get_state or set_state raises."""
    try:
        yield
    except NotCapturable:
        raise
    except Exception as error:
        raise NotCapturable(first_line(error)) from error


@_as_obstacle()
def capture(env: gymnasium.Env) -> dict[str, Any]:
    """The state of `env`, its wrappers and its generator, in plain values and arrays of their own.

    Raises NotCapturable, saying what is in the way.
    """
    layers = _layers(env)
    base = layers[-1]
    _check_views(layers)
    if _is_open(base):
        state = _taken_all(base)
    elif _has_protocol(base):
        # What it returns goes to set_state, not into an object of the same kind.
        state = _plain(base.get_state(), f"{_name(base)}.get_state()", within=True)  # type: ignore[attr-defined]
    else:
        raise NotCapturable(f"{_name(base)} has no get_state() and set_state()")
    return {
        "layers": [_name(layer) for layer in layers],
        "wrappers": [_taken_all(layer) for layer in layers[:-1]],
        "state": state,
        "generator": None if base._np_random is None else _generator(base._np_random),
    }


@_as_obstacle()
def restore(env: gymnasium.Env, captured: dict[str, Any]) -> None:
    """Put what `capture` returned into `env`, made like the one that it was taken from and reset at least once.

    Raises NotCapturable if the two differ; the environment must then be reset.
    """
    layers = _layers(env)
    names = [_name(layer) for layer in layers]
    if names != captured["layers"]:
        raise NotCapturable(
            f"the environment was {' > '.join(captured['layers'])}, and is {' > '.join(names)}"
        )
    for layer, values in zip(layers, captured["wrappers"], strict=False):
        _put_all(layer, values)
    base = layers[-1]
    if _is_open(base):
        _put_all(base, captured["state"])
    else:
        base.set_state(captured["state"])  # type: ignore[attr-defined]
    if captured["generator"] is not None:
        base.np_random.bit_generator.state = captured["generator"]


def _layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The wrappers from the outermost inwards, then the environment itself."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _name(env: gymnasium.Env) -> str:
    return type(env).__name__


def _is_open(env: gymnasium.Env) -> bool:
    """Whether all of the environment's state is in its attributes, as Gymnasium's own sources show."""
    modules = {base.__module__ for base in type(env).__mro__}
    return "gymnasium.envs.mujoco.mujoco_env" in modules or any(
        module.startswith("gymnasium.envs.classic_control.") for module in modules
    )


def _has_protocol(env: gymnasium.Env) -> bool:
    return all(callable(getattr(env, name, None)) for name in ("get_state", "set_state"))


def _is_variable(name: str, value: Any) -> bool:
    if name in _OF_PICTURES:
        return isinstance(value, (int, float, np.ndarray, np.generic))
    if name in _CONSTANT_NAMES or isinstance(value, _CONSTANT_TYPES):
        return False
    if isinstance(value, gymnasium.Space):
        return value._np_random is not None  # it draws from that, or will
    return not isinstance(value, _FUNCTIONS) or not _is_constant(value)


def _is_constant(value: Any) -> bool:
    """Whether a function, or what it has taken along, can be taken for what does not change: no object that may count
    or remember, a filter or a generator say.
    """
    if isinstance(value, (MethodType, BuiltinFunctionType)):
        return _is_constant(value.__self__) and _is_constant(getattr(value, "__func__", None))
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return _is_constant([cells, value.__defaults__, value.__kwdefaults__])
    if isinstance(value, (list, tuple, dict)):
        return all(map(_is_constant, value.values() if isinstance(value, dict) else value))
    plain = (bool, int, float, str, np.ndarray, np.generic, np.dtype, np.ufunc)
    return value is None or isinstance(value, (*plain, gymnasium.Env, gymnasium.Space, *_CONSTANT_TYPES))


def _check_views(layers: list[gymnasium.Env]) -> None:
    """Raise NotCapturable where two arrays show the same memory and `_taken_all` does not see it: each would be put
    back with memory of its own.
    """
    seen: dict[int, list[tuple[str, np.ndarray]]] = {}  # by what owns the memory
    for layer in layers:
        if not isinstance(layer, gymnasium.Wrapper) and not _is_open(layer):
            continue  # its set_state knows
        named = _named_arrays(layer)
        for name, value in vars(layer).items():
            for array in _arrays(value) if _is_variable(name, value) else ():
                if array is value and _whole_of(array, named):
                    continue
                others = seen.setdefault(id(_owner(array)), [])
                where = f"{_name(layer)}.{name}"
                for other, its in others:
                    if its is not array and np.may_share_memory(its, array):
                        raise NotCapturable(f"{where} shares memory with {other}")
                others.append((where, array))


def _named_arrays(layer: gymnasium.Env) -> dict[str, np.ndarray]:
    """The arrays that are variables of a layer themselves."""
    arrays = ((name, value) for name, value in vars(layer).items() if isinstance(value, np.ndarray))
    return {name: value for name, value in arrays if _is_variable(name, value)}


def _whole_of(array: np.ndarray, named: dict[str, np.ndarray]) -> str | None:
    """The name of what `array` is a view of, so that it can be made one again: the largest array of its type that is
    contiguous and has all of its memory. None where that is itself, or nothing.
    """
    if _is_foreign(array) or not array.size:
        return None
    low, high = _span(array)
    best: str | None = None
    for name, other in named.items():
        begin, end = _span(other)
        fits = other.flags.c_contiguous and other.dtype == array.dtype and begin <= low and high <= end
        if fits and (best is None or other.nbytes > named[best].nbytes):
            best = name
    return None if best is None or named[best] is array else best


def _span(array: np.ndarray) -> tuple[int, int]:
    """The addresses of an array's first byte, and of the one behind its last."""
    reach = [(count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True)]
    first = array.ctypes.data  # of the element at index 0, which a negative stride puts behind others
    low, high = sum(each for each in reach if each < 0), sum(each for each in reach if each > 0)
    return first + low, first + high + array.itemsize


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """The arrays in `value` whose memory is NumPy's."""
    if isinstance(value, np.ndarray):
        if not _is_foreign(value):
            yield value
    elif isinstance(value, (list, tuple, deque, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)


def _owner(array: np.ndarray) -> Any:
    """What an array's memory belongs to."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner


def _taken_all(layer: gymnasium.Env) -> dict[str, Any]:
    """What changes in one layer, by name: of an array with two names the second has the first, of a view of another
    array where it lies in that.
    """
    taken: dict[str, Any] = {}
    named = _named_arrays(layer)
    first = {id(array): name for name, array in reversed(named.items())}
    for name, value in vars(layer).items():
        if not _is_variable(name, value):
            continue
        if name in named and first[id(value)] != name:
            taken[name] = {_SAME_AS: first[id(value)]}
        elif name in named and (whole := _whole_of(value, named)):
            offset = value.ctypes.data - named[whole].ctypes.data
            taken[name] = {_VIEW_OF: whole, "at": (value.shape, offset, value.strides)}
        else:
            taken[name] = _taken(layer, name, value)
    return taken


def _taken(layer: gymnasium.Env, name: str, value: Any) -> Any:
    if type(value).__name__ == "MjData":
        return _simulation(_model_of(layer, value), value)
    if type(value).__name__ == "MjModel":
        return _digest(value)
    return _plain(value, f"{_name(layer)}.{name}")


def _plain(value: Any, where: str, within: bool = False) -> Any:
    """`value` with copies of its arrays. Raises NotCapturable if anything in it is not plain.

    Generators, deques and Gymnasium's statistics are taken apart; `_put` puts them together where they are a variable
    themselves, not `within` a list or a dictionary.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.char in _TYPES and value.dtype.isnative:
        return value.copy()
    if isinstance(value, (np.random.Generator, gymnasium.Space)) and not within:
        generator = value.np_random if isinstance(value, gymnasium.Space) else value
        return {_GENERATOR: _generator(generator)}
    if isinstance(value, (list, tuple)) or (isinstance(value, deque) and not within):
        items = [_plain(item, f"{where}[{i}]", within=True) for i, item in enumerate(value)]
        if isinstance(value, deque):
            return {_DEQUE: items, "maxlen": value.maxlen}
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}[{key!r}]", within=True) for key, item in value.items()}
    if type(value).__module__.startswith("gymnasium.wrappers.") and not within:  # RunningMeanStd
        return {key: _plain(item, f"{where}.{key}") for key, item in vars(value).items()}
    if isinstance(value, _FUNCTIONS) and not _is_constant(value):
        raise NotCapturable(f"{where} is a function with an object of its own, which may change")
    raise NotCapturable(f"{where} is a {type(value).__name__}, not plain numbers or arrays")


def _generator(generator: np.random.Generator) -> dict[str, Any]:
    return _plain(generator.bit_generator.state, type(generator).__name__)


def _put_all(target: Any, values: dict[str, Any]) -> None:
    def turn(item: tuple[str, Any]) -> int:
        """A view comes after what it is of, another name after what it is for."""
        value = item[1] if isinstance(item[1], dict) else {}
        return 2 if _SAME_AS in value else 1 if _VIEW_OF in value else 0

    for name, value in sorted(values.items(), key=turn):
        _put(target, name, value)


def _put(target: Any, name: str, value: Any) -> None:
    existing = vars(target).get(name)
    kind = type(existing).__name__
    if kind == "MjData":
        _put_simulation(_model_of(target, existing), existing, value)
    elif kind == "MjModel":
        if _digest(existing) != value:
            raise NotCapturable(f"the MuJoCo model of {_name(target)} is not the one that was saved")
    elif isinstance(value, dict) and _SAME_AS in value:
        setattr(target, name, vars(target)[value[_SAME_AS]])
    elif isinstance(value, dict) and _VIEW_OF in value:
        whole, (shape, offset, strides) = vars(target)[value[_VIEW_OF]], value["at"]
        setattr(target, name, np.ndarray(shape, whole.dtype, whole, offset, strides))
    elif isinstance(value, dict) and _DEQUE in value:
        setattr(target, name, deque(value[_DEQUE], value["maxlen"]))
    elif isinstance(value, dict) and _GENERATOR in value:
        state = value[_GENERATOR]
        existing = getattr(existing, "np_random", existing)  # a space has one
        if not isinstance(existing, np.random.Generator):
            existing = np.random.Generator(getattr(np.random, state["bit_generator"])())
            setattr(target, name, existing)
        existing.bit_generator.state = state
    elif type(existing).__module__.startswith("gymnasium.wrappers."):
        _put_all(existing, value)
    elif isinstance(existing, np.ndarray) and _is_foreign(existing) and existing.shape == np.shape(value):
        existing[...] = value
    else:
        setattr(target, name, value.copy() if isinstance(value, np.ndarray) else value)


def _is_foreign(array: np.ndarray) -> bool:
    """Whether an array shows memory that is not NumPy's, a simulator's say. What a view of a table shows is not the
    environment's to change.
    """
    return not isinstance(_owner(array), np.ndarray)


def _model_of(layer: Any, data: Any) -> Any:
    """The MjModel of an MjData: an environment may hold several, for inverse kinematics say."""
    model = getattr(data, "model", None)  # which old versions of MuJoCo do not tell
    return vars(layer)["model"] if model is None else model


def _simulation(model: Any, data: Any) -> dict[str, Any]:
    """MuJoCo's integration state (warm start and time included), and what it last derived from it: some environments
    read positions that are a step behind (Ant, Humanoid) before they step.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, integration, kind)
    return {"integration": integration, "derived": {k: v.copy() for k, v in _derived(data).items()}}


def _put_simulation(model: Any, data: Any, value: dict[str, Any]) -> None:
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    if value["integration"].shape != (mujoco.mj_stateSize(model, kind),):
        raise NotCapturable("MuJoCo is of another version")
    mujoco.mj_setState(model, data, value["integration"], kind)
    for name, array in _derived(data).items():
        saved = value["derived"].get(name)
        if saved is not None and saved.shape == array.shape:
            array[...] = saved
    mujoco.mj_collision(model, data)  # the contacts, which an environment may read before it steps


def _derived(data: Any) -> dict[str, np.ndarray]:
    """MjData's arrays of floats with a size that the model alone fixes, as views."""
    names = (name for name in dir(data) if not name.startswith(("_", *_OF_CONTACTS)))
    arrays = {name: getattr(data, name) for name in names}
    return {
        name: array
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and array.dtype == np.float64 and array.size
    }


def _digest(model: Any) -> str:
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return hashlib.sha256(buffer.tobytes()).hexdigest()
