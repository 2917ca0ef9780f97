"""What a meta-gradient is made of: the first-order one, and a correction for each step.

`MAML.meta_gradient(..., parts=True)` returns them beside the exact meta-gradient.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Parts(NamedTuple):
    """What a meta-gradient is made of: exact = query_gradient - corrections.sum(0)."""

    query_gradient: Array  # (P,) the first-order meta-gradient
    corrections: (
        Array  # (steps, P) H_S(theta_k) (alpha v_{k+1}), for k = 0 .. steps - 1
    )
    alpha_gradient: Array  # (P,) derivative of the meta-loss along each entry of alpha
    cosine: float  # of the angle between first-order and exact
    norm_ratio: float  # |first-order| / |exact|


def parts_of(
    gradient: Array, results: Mapping[str, Array], scale: float, steps: int
) -> Parts:
    """Parts of the exact meta-gradient (P,), from the outputs of its tape.

    results: sums over tasks, which `scale` makes sums or means; steps: K.
    """
    first = results["query_gradient"] * scale
    corrections = [results[f"correction{k}"] * scale for k in range(steps)]
    norms = float(np.linalg.norm(first)), float(np.linalg.norm(gradient))
    return Parts(
        first,
        np.array(corrections).reshape(steps, len(gradient)),
        results["alpha_gradient"] * scale,
        float(first @ gradient) / (norms[0] * norms[1]) if all(norms) else float("nan"),
        norms[0] / norms[1] if norms[1] else float("nan"),
    )
