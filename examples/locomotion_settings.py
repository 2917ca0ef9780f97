"""What the environments of `examples/locomotion.py` differ in, and the paper's numbers.

The settings are those in the names of the authors' files behind figure 5 where the
files tell, and those of their scripts else; the numbers of outer steps are ours. The
returns are in these files; the ones that tables of the paper have too are the same
there.

The bodies have a clock here, for the log.

Left out: ant-position has no returns, because the paper has no such experiment.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tinymaml.rl.locomotion import Ant, HalfCheetah, Locomotion

Array = np.ndarray[Any, Any]


class Timed(Locomotion):
    """A body that counts its steps and the seconds they take."""

    steps, seconds = 0, 0.0

    def step(
        self, states: Array, actions: Array, goals: Array
    ) -> tuple[Array, Array, Array]:
        """As without a clock."""
        started = time.perf_counter()
        result = super().step(states, actions, goals)
        self.seconds += time.perf_counter() - started
        self.steps += int((states[..., -1] == 0).sum())
        return result


class TimedHalfCheetah(Timed, HalfCheetah):
    """A half-cheetah with a clock."""


class TimedAnt(Timed, Ant):
    """An ant with a clock."""


BODIES: dict[str, type[Timed]] = {"cheetah": TimedHalfCheetah, "ant": TimedAnt}


class Setting(NamedTuple):
    """One environment: its sizes, inner learning rates, and the authors' returns."""

    iterations: int  # outer steps of MAML
    baseline_iterations: int  # outer steps of the pretrained policy and the oracle
    paper: Mapping[str, tuple[float, ...]]  # returns after 0, 1, 2, 3 gradient steps
    trajectories: int = 20  # for each task, before and after the inner step
    max_kl: float = 0.01  # mean KL divergence of an outer step
    shots: int = 20  # trajectories for each gradient step at test
    pretrained: float = 0.2  # inner learning rate of the pretrained policy at test
    random: float = 1.0  # the same of random weights
    later: float = 0.5  # at test, the rates are multiplied by it after the first step


SETTINGS = {
    "cheetah-velocity": Setting(
        iterations=800,
        baseline_iterations=500,
        trajectories=10,
        pretrained=0.02,
        random=0.1,
        paper={
            "exact": (-129.53, -78.57, -66.62, -60.78),
            "pretrained": (-158.00, -135.39, -128.47, -133.61),
            "random": (-254.83, -254.33, -246.79, -230.83),
            "oracle": (-54.47,),
        },
    ),
    "cheetah-direction": Setting(
        iterations=400,
        baseline_iterations=500,
        max_kl=0.02,
        paper={
            "exact": (-50.69, 293.19, 313.48, 315.65),
            "context": (-40.49, -44.08, -38.27, -42.50),  # table 5
            "pretrained": (-43.03, -24.75, -12.85, 19.57),
            "random": (-35.73, 21.83, 62.32, 86.18),
            "oracle": (442.69,),
        },
    ),
    "ant-velocity": Setting(
        iterations=400,
        baseline_iterations=1000,
        paper={
            "exact": (30.58, 96.74, 100.06, 101.41),
            "pretrained": (-1.83, 6.11, 8.47, 9.47),
            "random": (-78.64, -62.81, -48.55, -35.56),
            "oracle": (107.89,),
        },
    ),
    "ant-direction": Setting(
        iterations=600,
        baseline_iterations=1000,
        trajectories=40,
        shots=40,
        later=0.01,
        paper={
            "exact": (8.66, 499.15, 500.68, 499.11),
            "pretrained": (3.16, 1.27, 6.51, 6.86),
            "random": (3.11, 9.25, 15.96, 26.11),
            "oracle": (524.80,),
        },
    ),
    "ant-position": Setting(iterations=400, baseline_iterations=1000, paper={}),
}
