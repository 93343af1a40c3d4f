"""`robot:Robot-v0`, Pusher-v5 on a robot's clock: each step waits for the arm, whatever the computer does meanwhile."""

import time

import gymnasium

STEP_S = 0.01  # 100 Hz


class Robot(gymnasium.Wrapper):
    def step(self, action):
        time.sleep(STEP_S)
        return super().step(action)


def make() -> gymnasium.Env:
    return Robot(gymnasium.make("Pusher-v5").unwrapped)


gymnasium.register("Robot-v0", entry_point=make, max_episode_steps=100)
