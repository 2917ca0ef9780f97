"""What the environments of `examples/locomotion.py` differ in, and the paper's numbers.

The settings are those in the names of the authors' files behind figure 5 where the
files tell, and those of their scripts else. The returns are in these files; the ones
that tables of the paper have too are the same there.

Left out: ant-position has no returns, because the paper has no such experiment.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Setting(NamedTuple):
    """One environment: its sizes, its step sizes at test, and the authors' returns."""

    trajectories: int  # for each task, before and after the inner step
    iterations: int  # outer steps of MAML
    baseline_iterations: int  # outer steps of the pretrained policy and the oracle
    max_kl: float  # mean KL divergence of an outer step
    shots: int  # trajectories for each gradient step at test
    pretrained: float  # inner learning rate of the pretrained policy at test
    random: float  # the same of random weights
    later: float  # at test, step sizes are multiplied by it after the first step
    paper: Mapping[str, tuple[float, ...]]  # returns after 0, 1, 2, 3 gradient steps


SETTINGS = {
    "cheetah-velocity": Setting(
        trajectories=10,
        iterations=400,
        baseline_iterations=500,
        max_kl=0.01,
        shots=20,
        pretrained=0.02,
        random=0.1,
        later=0.5,
        paper={
            "exact": (-129.53, -78.57, -66.62, -60.78),
            "pretrained": (-158.00, -135.39, -128.47, -133.61),
            "random": (-254.83, -254.33, -246.79, -230.83),
            "oracle": (-54.47,),
        },
    ),
    "cheetah-direction": Setting(
        trajectories=20,
        iterations=200,
        baseline_iterations=500,
        max_kl=0.02,
        shots=20,
        pretrained=0.2,
        random=1.0,
        later=0.5,
        paper={
            "exact": (-50.69, 293.19, 313.48, 315.65),
            "pretrained": (-43.03, -24.75, -12.85, 19.57),
            "random": (-35.73, 21.83, 62.32, 86.18),
            "oracle": (442.69,),
        },
    ),
    "ant-velocity": Setting(
        trajectories=20,
        iterations=400,
        baseline_iterations=1000,
        max_kl=0.01,
        shots=20,
        pretrained=0.2,
        random=1.0,
        later=0.5,
        paper={
            "exact": (30.58, 96.74, 100.06, 101.41),
            "pretrained": (-1.83, 6.11, 8.47, 9.47),
            "random": (-78.64, -62.81, -48.55, -35.56),
            "oracle": (107.89,),
        },
    ),
    "ant-direction": Setting(
        trajectories=40,
        iterations=600,
        baseline_iterations=1000,
        max_kl=0.01,
        shots=40,
        pretrained=0.2,
        random=1.0,
        later=0.01,
        paper={
            "exact": (8.66, 499.15, 500.68, 499.11),
            "pretrained": (3.16, 1.27, 6.51, 6.86),
            "random": (3.11, 9.25, 15.96, 26.11),
            "oracle": (524.80,),
        },
    ),
    "ant-position": Setting(
        trajectories=20,
        iterations=400,
        baseline_iterations=1000,
        max_kl=0.01,
        shots=20,
        pretrained=0.2,
        random=1.0,
        later=0.5,
        paper={},
    ),
}
