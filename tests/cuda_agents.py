"""Agents whose engine is CUDA's: on a GPU where there is one, and under the emulator."""

import dataclasses

import pytest
from agents import SMALL, make_agent

from sacfast import SACAgent
from sacfast.engines.cuda import CudaEngine

GPU = pytest.mark.cuda


def engine_for(agent: SACAgent, place: dict, precision: str = "float32") -> CudaEngine:
    return CudaEngine(dataclasses.replace(agent.config, precision=precision), **place)


def cuda_agent(place: dict, shape=SMALL, precision: str = "float32", **kwargs) -> SACAgent:
    agent = make_agent(shape, device=place["device"], **kwargs)
    agent.engine = engine_for(agent, place, precision)
    return agent
