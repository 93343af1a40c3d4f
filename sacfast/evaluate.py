"""Deterministic evaluation, baselines and video; `python -m sacfast.evaluate RUN`.

Episode i of an evaluation starts from `reset(seed=seed + i)`, so that a policy meets the same starts every
time and policies can be compared episode by episode.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import VectorEnv
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sacfast.agent import SACAgent
from sacfast.checked import EnvironmentFault, begun, stepped
from sacfast.collector import Array, Collector, of_actions
from sacfast.config import TrainConfig
from sacfast.envs import ActionBounds, check_finite, check_spaces, env_name, is_vector, make_env, usable
from sacfast.errors import SACError, first_line, raised
from sacfast.requirements import check_whole
from sacfast.runs import given_environments, load_agent
from sacfast.vector import close_and_tell

# The best checkpoint is chosen by the scores on one set of starts and reported on another: a maximum over
# noisy scores flatters itself.
SELECTION_SEED = 10_000
REPORT_SEED = 20_000
# For environments without a time limit of their own, where a good policy might never finish.
MAX_EPISODE_STEPS = 10_000

Policy = Callable[[Array], Array]  # observation [O], or those of a vector [N, O], to actions


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of episodes, with the returns' mean and population standard deviation."""

    mean: float
    std: float
    min: float
    max: float
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, returns: list[float], lengths: list[int]) -> Evaluation:
        array = np.asarray(returns, np.float64)
        return cls(
            mean=float(array.mean()),
            std=float(array.std()),
            min=float(array.min()),
            max=float(array.max()),
            returns=tuple(returns),
            lengths=tuple(lengths),
        )

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


def evaluate(
    agent_or_policy: SACAgent | Policy,
    env_id: str | gymnasium.Env | VectorEnv,
    episodes: int = 10,
    seed: int = REPORT_SEED,
    **make_kwargs: Any,
) -> Evaluation:
    """Run `episodes` episodes, from reset(seed=seed + i), each cut at 10,000 steps, and return their statistics.

    agent_or_policy: an agent, which then acts by the mean of its policy, or a function from observation [O]
        to action [A] in the environment's units.
    env_id: an environment id, with `make_kwargs` for gymnasium.make; or an environment, or a vector of them (a
        policy then gets [N, O]), which is left open. A vector contributes the first episode of each environment
        after a reset, as often as it takes: counting whichever end first would favour short ones.

    Raises SACError for an environment that SAC cannot use (`make_env`) or whose actions have other bounds than the
    agent's, for episodes < 1 and for seed < 0.
    """
    episodes, seed = check_whole("episodes", episodes, 1), check_whole("seed", seed, 0)
    if make_kwargs and not isinstance(env_id, str):
        raise SACError(
            f"{', '.join(make_kwargs)}: for an environment that is made by its name; this one is made already"
        )
    policy = _as_policy(agent_or_policy)
    if is_vector(env_id):
        _check_bounds(agent_or_policy, env_id)  # type: ignore[arg-type]
        return _vector_rollouts(policy, env_id, episodes, seed)  # type: ignore[arg-type]
    returns, lengths = [], []
    with _opened(env_id, make_kwargs) as env:  # type: ignore[arg-type]
        _check_bounds(agent_or_policy, env)
        for episode in range(episodes):
            total, length = _rollout(policy, env, seed + episode)
            returns.append(total)
            lengths.append(length)
    return Evaluation.of(returns, lengths)


@contextmanager
def _opened(env_id: str | gymnasium.Env, make_kwargs: dict[str, Any]) -> Iterator[gymnasium.Env]:
    """The environment of that name, closed at the end, or the caller's own, which is left open; fit for SAC."""
    if not isinstance(env_id, str):
        yield usable(env_id)
        return
    with _closing(make_env(env_id, **make_kwargs)) as env:
        yield env


@contextmanager
def _closing(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    try:
        yield env
    finally:
        close_and_tell(env)


def _check_bounds(agent_or_policy: SACAgent | Policy, env: gymnasium.Env | VectorEnv) -> None:
    """Raise SACError where the agent's actions would mean others there."""
    bounds = getattr(agent_or_policy, "bounds", None)
    if isinstance(bounds, ActionBounds) and not bounds.nearly(theirs := check_spaces(env).bounds):
        raise SACError(
            f"the agent has actions in {bounds} and {env_name(env)} in {theirs}; give it the wrappers that the agent "
            "was trained with."
        )


def _as_policy(agent_or_policy: SACAgent | Policy) -> Policy:
    if not hasattr(agent_or_policy, "select_action"):
        return agent_or_policy
    agent: SACAgent = agent_or_policy  # type: ignore[assignment]

    def act(observation: Array) -> Array:
        choose: Callable = agent.act if isinstance(observation, Tensor) else agent.select_action
        return choose(observation, evaluate=True)

    return act


def _rollout(
    policy: Policy, env: gymnasium.Env, seed: int, on_step: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """Return and length of one episode. Raises SACError for what training would refuse; other errors as they are."""
    name, shape = env_name(env), env.observation_space.shape
    total, at, done = 0.0, 0, False
    try:
        observation = begun(env.reset(seed=seed), shape)
        check_finite(name, at, observation)
        on_step()
        while not done and at < MAX_EPISODE_STEPS:
            at += 1
            observation, reward, terminated, truncated = stepped(env.step(policy(observation)), shape)
            check_finite(name, at, observation, reward)
            on_step()
            total, done = total + reward, terminated or truncated
    except EnvironmentFault as fault:
        raise SACError(f"{name}, at step {at}, {fault}.") from fault.__cause__
    return total, at


def _vector_rollouts(policy: Policy, envs: VectorEnv, episodes: int, seed: int) -> Evaluation:
    returns: list[float] = []
    lengths: list[int] = []
    while len(returns) < episodes:
        first = seed + len(returns)
        collector = Collector(envs, env_name(envs), lambda env, episode, first=first: first + env)  # type: ignore[misc]
        collector.reset()
        wanted = min(collector.num_envs, episodes - len(returns))
        finished: dict[int, tuple[float, int]] = {}
        for step in range(MAX_EPISODE_STEPS):
            for episode in collector.step(policy(collector.obs), step * collector.num_envs)[1]:
                finished.setdefault(episode.env, (episode.total, episode.length))
            if all(env in finished for env in range(wanted)):
                break
        under_way = collector.under_way()
        for env in range(wanted):
            total, length = finished.get(env, under_way[env])
            returns.append(total)
            lengths.append(length)
    return Evaluation.of(returns, lengths)


def random_policy(bounds: ActionBounds, seed: int) -> Policy:
    """Uniform actions within the bounds, the same sequence for the same seed."""
    generator = np.random.default_rng(of_actions(seed))

    def act(observation: Array) -> Array:
        shape = (*np.shape(observation)[:-1], bounds.dim)
        return _like(observation, bounds.to_env(generator.uniform(-1.0, 1.0, shape)))

    return act


def zero_policy(bounds: ActionBounds) -> Policy:
    """The zero action, or the bound nearest to it where zero is outside the bounds."""
    action = np.clip(np.zeros(bounds.dim, np.float32), bounds.low, bounds.high)
    return lambda observation: _like(observation, np.tile(action, (*np.shape(observation)[:-1], 1)))


def _like(observation: Array, action: np.ndarray) -> Array:
    """`action` as a tensor on the observation's device, where that is a tensor."""
    return torch.as_tensor(action, device=observation.device) if isinstance(observation, Tensor) else action


def baseline_policies(env: gymnasium.Env | VectorEnv, seed: int) -> dict[str, Policy]:
    """What a trained policy is compared with: random and zero actions."""
    bounds = check_spaces(env if is_vector(env) else usable(env)).bounds  # type: ignore[arg-type]
    return {"random": random_policy(bounds, seed), "zero": zero_policy(bounds)}


def baselines(env: gymnasium.Env | VectorEnv, episodes: int, seed: int) -> dict[str, Evaluation]:
    """Evaluations of "random" and "zero" actions, from the same starts as `evaluate` with this seed."""
    policies = baseline_policies(env, seed)
    return {name: evaluate(policy, env, episodes, seed) for name, policy in policies.items()}


def choose_mujoco_gl() -> None:
    """Set MUJOCO_GL to a backend that works here, unless it is set already or there is a display.

    Each candidate is tried in a process of its own, since a failing OpenGL library may end the process. Call
    it before mujoco is first imported. Raises SACError when none works.
    """
    has_display = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_display or os.environ.get("MUJOCO_GL"):
        return
    probe = "import mujoco; mujoco.GLContext(64, 64).make_current()"
    for backend in ("egl", "osmesa"):
        environment = os.environ | {"MUJOCO_GL": backend}
        try:
            subprocess.run(
                [sys.executable, "-c", probe], env=environment, check=True, capture_output=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            continue
        os.environ["MUJOCO_GL"] = backend
        return
    raise SACError(
        "for MuJoCo neither EGL nor OSMesa can render here without a display; install one of them (on Debian "
        "libegl1 or libosmesa6) or set MUJOCO_GL."
    )


def record_video(
    agent_or_policy: SACAgent | Policy,
    env_id: str | gymnasium.Env,
    path: str | os.PathLike,
    seed: int = REPORT_SEED,
    make_kwargs: dict[str, Any] | None = None,
) -> None:
    """Write one deterministic episode as a video (the file's suffix chooses the format, .mp4 or .gif).

    env_id: an environment id, with `make_kwargs` for gymnasium.make; or an environment whose render_mode is
        "rgb_array", which is left open.

    Raises SACError, in one sentence, when the environment cannot be rendered or the file cannot be written.
    """
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401 (imageio's encoder; without it the error would name no remedy)
    except ImportError as error:
        raise SACError(f"no video: {error.name} is not installed; pip install 'sacfast[video]'.") from None
    obstacle = None
    if isinstance(env_id, str):
        try:
            choose_mujoco_gl()
        except SACError as error:  # which is nothing to an environment with another renderer
            obstacle = first_line(error)
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    # Whatever a renderer or an encoder raises (OpenGL alone has a dozen types) is the same to the caller.
    try:
        with _opened(env_id, (make_kwargs or {}) | {"render_mode": "rgb_array"}) as env:
            if env.render_mode != "rgb_array":
                raise SACError(
                    f"its render_mode is {env.render_mode!r}; make it with render_mode='rgb_array'"
                )
            fps = env.metadata.get("render_fps", 30)
            options: dict[str, Any] = {} if path.suffix == ".gif" else {"macro_block_size": 2}
            _check_bounds(agent_or_policy, env)
            writer: Any = imageio.v2.get_writer(str(part), fps=fps, **options)
            with writer:
                policy = _as_policy(agent_or_policy)
                _rollout(policy, env, seed, lambda: writer.append_data(np.asarray(env.render())))
        os.replace(part, path)
    except Exception as error:
        reason = first_line(error)
        if obstacle is not None and "mujoco" in sys.modules:
            reason = f"{reason}; {obstacle}"
        with suppress(OSError):
            part.unlink()
        name = env_id if isinstance(env_id, str) else env_name(env_id)
        raise SACError(f"no video of {name} at {path}: {reason}") from error


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a trained policy over whole episodes, acting by its mean."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as printed by training."""

    episodes: int = 10
    """Episodes to run."""

    seed: int = REPORT_SEED
    """Episode i starts from seed + i; with the default, where the score began that training printed."""

    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint to load."""

    video: Path | None = None
    """Also record the first episode to this file (.mp4 or .gif)."""

    baselines: bool = True
    """Score random and zero actions from the same starts too."""

    json: bool = False
    """Print one JSON object instead of a table."""


def _as_json(
    env: str, checkpoint: str, extra: dict[str, Any], score: Evaluation, others: dict[str, Evaluation]
) -> dict[str, Any]:
    return {
        "env": env,
        "checkpoint": checkpoint,
        "step": extra.get("step"),
        **dataclasses.asdict(score),
        "baselines": {name: dataclasses.asdict(value) for name, value in others.items()},
    }


def _as_table(title: str, score: Evaluation, others: dict[str, Evaluation]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("return per episode")
    for name in ("mean", "std", "min", "max", "mean steps"):
        table.add_column(name, justify="right")
    for name, value in {
        "policy": score,
        **{f"{name} actions": other for name, other in others.items()},
    }.items():
        numbers = [f"{number:,.2f}" for number in (value.mean, value.std, value.min, value.max)]
        table.add_row(name, *numbers, f"{np.mean(value.lengths):,.1f}")
    return table


def _environment_of(config: EvaluateConfig, trained: TrainConfig) -> gymnasium.Env:
    """The run's environment, made by its name. Raises SACError where only the user's program can make it."""
    given = given_environments(config.run)
    try:
        env = make_env(trained.env, **trained.make_kwargs)
    except SACError as error:
        if not given:
            raise
        which = f"{str(config.run)!r}" if config.checkpoint == "best" else f"{str(config.run)!r}, 'last'"
        raise SACError(
            f"{config.run} was trained or scored in an environment given in Python, which only your program can make "
            f"({str(error).rstrip('.')}); score it there: from sacfast.evaluate import evaluate; from sacfast.runs "
            f"import load_agent; evaluate(load_agent({which})[0], env)"
        ) from error
    if given:
        print(
            f"{config.run} was trained or scored in an environment given in Python; now a plain {trained.env} "
            "takes its place",
            file=sys.stderr,
        )
    return env


def main(arguments: list[str] | None = None) -> int:
    config = tyro.cli(EvaluateConfig, args=arguments, prog="python -m sacfast.evaluate")
    if config.video is not None:
        with suppress(SACError):  # record_video says it, after the scores
            choose_mujoco_gl()  # now: scoring imports mujoco, which reads the choice only then
    try:
        agent, trained, extra = load_agent(config.run, config.checkpoint, engine="reference")
        with _closing(_environment_of(config, trained)) as env:
            try:
                score = evaluate(agent, env, config.episodes, config.seed)
                others = baselines(env, config.episodes, config.seed) if config.baselines else {}
            except SACError:
                raise
            except (Exception, SystemExit) as error:
                raise SACError(f"{trained.env} {raised(error)}.") from error
        if config.json:
            print(json.dumps(_as_json(trained.env, config.checkpoint, extra, score, others)))
        else:
            step = f", step {extra['step']:,}" if "step" in extra else ""
            title = f"{trained.env}, {config.episodes} episodes ({config.checkpoint} policy{step})"
            Console(highlight=False).print(_as_table(title, score, others))
        if config.video is not None:
            record_video(agent, trained.env, config.video, config.seed, trained.make_kwargs)
            print(f"video: {config.video}", file=sys.stderr if config.json else sys.stdout)
    except SACError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
