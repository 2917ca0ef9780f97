"""Learning to learn sine waves: MAML and first-order MAML on one screen.

    python examples/first_steps.py     # under 20 seconds, compilation included

Meta-training looks for initial parameters theta from which one gradient step on 10
points of a new wave is enough to draw that wave. The loop is algorithm 2 of the paper;
the meta-gradient is computed by the function of that name in `tinymaml/maml.py`. The
program prints the mean squared error on 600 new waves after 0, 1, 2, 3 gradient steps,
and draws the fits to three of them into first_steps.png. The settings suit a short run;
the paper's are in `sinusoid.py`.
"""

import matplotlib.pyplot as plt
import numpy as np

import tinymaml as tm
from tinymaml.tasks import sinusoid

ITERATIONS = 3_000
network = tm.MLP([1, 40, 40, 1])


def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """Mean squared error of the network with parameters theta, one flat vector."""
    return tm.squared_error(network(theta, x), y)


def meta_train(maml: tm.MAML) -> np.ndarray:
    """Algorithm 2: draw tasks, compute the meta-gradient, take an outer step."""
    rng = np.random.default_rng(0)
    theta = network.init(rng)  # (1761,)
    adam = tm.Adam(0.005)  # the outer learning rate
    for _ in range(ITERATIONS):
        tasks = sinusoid.sample_tasks(rng, tasks=25, shots=10)
        adam.update(theta, maml.meta_gradient(theta, tasks).gradient)  # in place
    return theta


def main() -> None:
    """Train both, print their errors on new waves and draw three of their fits."""
    waves = sinusoid.sample_waves(np.random.default_rng(1), tasks=600)
    new = sinusoid.sample_points(np.random.default_rng(2), waves, shots=10, query=10)
    grid = np.linspace(-5, 5, 200, dtype=np.float32)[:, None]
    _, panels = plt.subplots(2, 3, figsize=(9, 4), sharey=True, layout="constrained")
    print("error after        0    1    2    3 gradient steps")
    for row, (order, name) in enumerate([(2, "MAML"), (1, "first-order MAML")]):
        maml = tm.MAML(loss, alpha=0.003, steps=1, order=order)
        theta = meta_train(maml)
        print(f"{name:17}", maml.evaluate(theta, new, steps=3).mean(axis=0).round(2))
        panels[row, 0].set_ylabel(f"{name}\ny")
        adapted = maml.adapt(theta, new.x_support, new.y_support, steps=3)
        for i, axes in enumerate(panels[row]):  # axes i show wave i
            axes.plot(grid, waves(grid[None])[i], "k", lw=1, label="true wave")
            for steps, style in ((0, ":C7"), (1, "--C0"), (3, "C0")):
                label = f"gradient steps: {steps}" if steps else "before any step"
                fit = network.predict(adapted[i, steps], grid)
                axes.plot(grid, fit, style, label=label)
            axes.plot(new.x_support[i], new.y_support[i], "^C1", label="support points")
    plt.setp(panels[-1], xlabel="x")
    plt.figlegend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    plt.savefig("first_steps.png")


if __name__ == "__main__":
    main()
