"""What the ranks of the tests do: `mpirun -n 2 python -m tests.support.rank_scenarios`.

    same FOLDER            every result beside that of one process, in both modes
    train FOLDER N [FAULT] train for N iterations in exact mode, perhaps with a fault
    bare FOLDER N [FAULT]  the same, with nothing around it, and saving takes a second

Each rank writes rank<number>.json into the folder.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import tinymaml as tm
from tests.support.policy_problems import small_learner, small_theta
from tinymaml.tasks import sinusoid
from tinymaml.tasks.episodes import Episodes
from tinymaml.training import run as run_module
from tinymaml.training.checkpoint import save_checkpoint
from tinymaml.training.distributed import Distributed, launched
from tinymaml.training.optim import SGD, Adam, cosine
from tinymaml.training.train import train
from tinymaml.variants.maml_plus_plus import MAMLPlusPlus, annealed_weights

NETWORK = tm.MLP([1, 8, 1], "tanh")
FAULT_AT = 5  # the iteration at which a fault happens


def loss(theta, x, y):
    return tm.squared_error(NETWORK(theta, x), y)


def image_loss(theta, x, y):
    return tm.cross_entropy(IMAGE_NETWORK(theta, x.reshape(x.shape[0], 16)), y)


IMAGE_NETWORK = tm.MLP([16, 6, 3])


def trained(learner, theta, sample, iterations=4, optimiser=None, **options):
    """theta, and the losses of each iteration."""
    before = theta.copy()
    result = train(
        learner,
        theta,
        sample,
        iterations=iterations,
        optimiser=optimiser or Adam(cosine(0.01, 9)),
        rng=np.random.default_rng(1),
        progress=False,
        log_every=1,
        **options,
    )
    assert (result.theta != before).mean() > 0.5  # steps were taken
    return [result.theta, np.array([row.loss for row in result.losses])]


def episodes(tasks):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4), np.uint8)
    sizes = {"ways": 3, "shots": 1, "queries": 2, "tasks": tasks}
    return Episodes(images, np.repeat(np.arange(6), 10), rotations=True, **sizes)


def calls():
    """What is compared: from a learner to arrays, and the learner of each."""
    maml = tm.MAML(loss, 0.1, threads=1, clip=0.5)
    summed = tm.MAML(loss, 0.1, steps=2, threads=1, reduction="sum")
    annealed = MAMLPlusPlus(
        loss,
        NETWORK,
        weights_at=lambda t: annealed_weights(t, steps=2, until=3),
        order_at=lambda t: 1 if t < 2 else 2,
        steps=2,
        threads=1,
    )
    images = tm.MAML(image_loss, 0.1, threads=1)
    policy = small_learner("numba")
    theta = NETWORK.init(np.random.default_rng(0))
    start = IMAGE_NETWORK.init(np.random.default_rng(0))
    acting = small_theta(policy.policy).astype("float32")
    few, many = (sinusoid.sample_tasks(np.random.default_rng(2), n) for n in (1, 70))

    def with_parts(learner):
        result = learner.meta_gradient(theta, many, parts=True)
        return [result.gradient, result.losses, *result.parts[:3]]

    def policies(tasks):
        def call(learner):
            def sample(rng):
                return learner.draw(rng, tasks)

            return trained(learner, acting, sample, 3, SGD(1.0))

        return policy, call

    return {
        "25 tasks": (maml, lambda m: trained(m, theta, sinusoid.sample_tasks)),
        "70 tasks": (
            summed,
            lambda m: trained(m, theta, lambda r: sinusoid.sample_tasks(r, 70)),
        ),
        "steps of their own": (
            annealed,
            lambda m: trained(m, m.start(theta), sinusoid.sample_tasks),
        ),
        "one task": (maml, lambda m: [m(theta, few).gradient, m(theta, few).losses]),
        "parts": (summed, with_parts),
        "images": (images, lambda m: trained(m, start, episodes(7))),
        "many images": (images, lambda m: trained(m, start, episodes(45))),
        "images of two tasks": (images, lambda m: trained(m, start, episodes(2))),
        "adapt": (maml, lambda m: [m.adapt(theta, *many[:2])]),
        "evaluate": (maml, lambda m: [m.evaluate(theta, many, 2)]),
        "predict": (
            maml,
            lambda m: [m.predict(lambda t, x, _: NETWORK(t, x), theta, many, 1)],
        ),
        "policies": policies(7),
        "two policies": policies(2),
        "a policy": policies(1),
    }


def same(folder):
    """For each call and mode: the largest difference from one process, or "same"."""
    report = {}
    for name, (learner, call) in calls().items():
        alone = call(learner)
        for exact in (True, False):
            ranks = launched()
            ranks.exact = exact
            together = call(Distributed(learner, ranks))
            if all(
                a.tobytes() == b.tobytes() and a.dtype == b.dtype
                for a, b in zip(alone, together, strict=True)
            ):
                difference = "same"
            else:
                difference = max(
                    float(np.abs(a - b).max() / np.abs(b).max())
                    for a, b in zip(together, alone, strict=True)
                )
            report[f"{name}, {'exact' if exact else 'fast'}"] = difference
    return report


def threads_of(ranks):
    """The threads of a rank: where all may use nine cores, and where each has two."""
    found, real = [], os.sched_getaffinity
    for cores in (range(9), range(2 * ranks.rank, 2 * ranks.rank + 2)):
        os.sched_getaffinity = lambda _, cores=cores: {*cores}
        found.append(ranks.threads())
    os.sched_getaffinity = real
    return found


def run_training(folder, iterations, fault="", rank="1"):
    """Train in exact mode; one rank, or all, may have a fault at iteration 5."""
    ranks, out = launched(), Path(folder, "c.npz")
    faulty = rank == "all" or ranks.rank == int(rank)
    drawn = 0

    def at_fault(kind):
        return faulty and fault == kind and drawn == FAULT_AT

    def sample(rng):
        nonlocal drawn
        drawn += 1
        tasks = sinusoid.sample_tasks(rng, 5)
        rng.spawn(1)
        if at_fault("sample"):
            raise ValueError("no such task")
        if at_fault("kill"):
            Path(folder, "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if at_fault("signal"):
            os.kill(os.getpid(), signal.SIGTERM)
        if at_fault("nan"):
            tasks.y_query[-1] = 3e38  # the last rank's; its square overflows
        if fault == "slow":
            time.sleep(0.02)
        return tasks

    def validate(theta):
        if at_fault("validate"):
            raise OSError("no validation tasks")
        return -float(theta @ theta)

    learner = Distributed(tm.MAML(loss, 0.1, threads=1), ranks, exact=True)
    theta = NETWORK.init(np.random.default_rng(ranks.rank if fault == "start" else 0))
    resume = out if out.exists() else None
    report = {"resumed": resume is not None}
    try:
        result = train(
            learner,
            theta,
            sample,
            iterations=int(iterations),
            optimiser=Adam(cosine(0.01, 50)),
            rng=np.random.default_rng(1),
            out=out,
            log=Path(folder, "log.csv"),
            resume=resume,
            progress=False,
            log_every=3,
            checkpoint_every=100,
            validate=validate,
            validate_every=1,
            stop=(lambda run: faulty and run.iteration == FAULT_AT)
            if fault == "stop"
            else None,
        )
    except Exception as error:
        report |= {"error": type(error).__name__, "message": str(error)}
        if fault == "nan":
            report["iteration"] = error.iteration
        raise
    else:
        report |= {"iteration": result.iteration, "interrupted": result.interrupted}
        if result.interrupted:
            sys.exit(130)
    finally:
        Path(folder, f"rank{ranks.rank}.json").write_text(json.dumps(report))
    if fault == "outside" and faulty:
        raise ValueError("after the training")
    if fault == "outside":
        ranks.agree()


def save_slowly(*arguments, **arrays):
    time.sleep(1)
    save_checkpoint(*arguments, **arrays)


def main():
    name, folder, *arguments = sys.argv[1:]
    ranks = launched()
    if name == "same":
        threads = threads_of(ranks)
        report = {"size": ranks.size, "threads": threads, **same(folder)}
        Path(folder, f"rank{ranks.rank}.json").write_text(json.dumps(report))
        return
    if name == "bare":
        run_module.save_checkpoint = save_slowly
        run_training(folder, *arguments)
        return
    status = 1
    try:
        run_training(folder, *arguments)
        status = 0
    except SystemExit as end:
        status = end.code
        raise
    finally:
        if status:
            ranks.leave(status)


if __name__ == "__main__":
    main()
