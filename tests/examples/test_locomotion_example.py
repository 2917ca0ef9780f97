"""examples/locomotion.py: what it computes, what it writes, what it refuses."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import locomotion_figures as figures
import reinforcement_figures
from locomotion_settings import SETTINGS
from reinforcement import TEST
from tests.support.running_examples import (
    load_example,
    read_strict_json,
    refusal,
    select,
)
from tests.support.training import read_rows
from tinymaml.rl import locomotion
from tinymaml.rl.maml_trpo import MAMLTRPO
from tinymaml.training.checkpoint import load_checkpoint

ALL = ["exact", "first-order", "context", "pretrained", "random", "oracle"]
HORIZON = 6


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bare():
    """Return the example as it is."""
    return load_example("locomotion")


@pytest.fixture
def example(bare):
    """Return the example, with few and short trajectories."""
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    bare.BODIES = {k: partial(v, horizon=HORIZON) for k, v in bare.BODIES.items()}
    sizes = {"tasks": 2, "trajectories": 3, "pooled": 4, "test_tasks": 2, "shots": 2}
    bare.FAST.update(sizes)
    bare.VALIDATE_EVERY = bare.VALIDATE_BASELINES_EVERY = 1
    return bare


@pytest.fixture
def small(example):
    """Leave out the figure, which other tests have."""
    example.draw = lambda *_: None
    return example


def run(module, *arguments, out="out"):
    """Run it; return results."""
    given = ["--fast", "--backend", "numpy", "--threads", "1", *map(str, arguments)]
    given += [] if "--iterations" in given else ["--iterations", "2"]
    given += [] if "--baseline-iterations" in given else ["--baseline-iterations", "1"]
    assert module.main([*given, "--out", str(out)]) == 0
    return read_strict_json(Path(out) / "results.json")


def logged(name="exact", out="out"):
    return read_rows(Path(out) / name / "log.csv")


def made(module, *arguments):
    """Return the experiment that these arguments make."""
    arguments = ["--fast", "--backend", "numpy", "--threads", "1", *arguments]
    options, backend = module.read_options(module.make_parser(), arguments)
    module.fill_in(options)
    return module.make_experiment(options, backend)


# --- what it writes and prints --------------------------------------------------------


@pytest.mark.usefixtures("painted")
def test_full_run_writes_all_its_files_and_compares_with_the_paper(
    example, monkeypatch, capsys
):
    monkeypatch.setattr(figures, "FRAMES", 2)
    results = run(example, "--methods", *ALL, "--gif")
    trained = sorted({*ALL} - {"random"})
    files = ["adaptation.gif", *trained, "figure5.png", "results.json"]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(files)
    for name in trained:
        written = sorted(path.name for path in Path("out", name).iterdir())
        assert written == ["checkpoint.npz", "log.csv"]
    assert Path("out/figure5.png").read_bytes().startswith(b"\x89PNG")
    assert (results["experiment"], results["env"]) == (
        "locomotion",
        "cheetah-direction",
    )
    assert (results["alpha"], results["max_kl"], results["tasks"]) == (0.1, 0.02, 2)
    assert len(results["rows"]) == 5 * 4 + 1
    assert [row["paper"] for row in select(results, "context", 2)] == [
        *(-40.49, -44.08, -38.27, -42.50)
    ]
    assert [row["paper"] for row in select(results, "maml", 2)] == [
        *(-50.69, 293.19, 313.48, 315.65)
    ]
    assert all(row["paper"] is None for row in select(results, "maml", 1))
    assert [row["paper"] for row in select(results, "oracle")] == [442.69]
    assert all(np.isfinite(row["return"]) for row in results["rows"])
    row = select(results, "random")[1]
    assert f"{row['return']:.2f} ± {row['ci95']:.2f} (21.83)" in capsys.readouterr().out
    sizes = [results[key] for key in ("context", "baseline_iterations", "shots")]
    assert sizes == [5, 1, 2]
    assert results["mujoco"] == sys.modules["mujoco"].__version__
    # A run without an animation does not leave that of the run it replaces.
    run(example, "--methods", "random", "--overwrite")
    assert not Path("out/adaptation.gif").exists()


def test_log_has_the_inner_step_the_speed_of_the_simulator_and_what_failed(small):
    run(small, "--methods", "exact", "pretrained")
    assert [row["iteration"] for row in logged()] == ["1", "2"]
    assert [row["iteration"] for row in logged("pretrained")] == ["1"]
    for row in logged():
        assert 0 < float(row["inner_kl"]) < 100 and float(row["kl"]) <= 0.02
        assert float(row["loss"]) == -float(row["after"])
        assert float(row["physics_per_second"]) > 10 and float(row["unstable"]) == 0


def test_trajectories_that_unstable_physics_ends_are_counted_in_the_log(
    small, monkeypatch
):
    monkeypatch.setattr(locomotion, "LARGEST", 1e-6)  # all that moves is unstable
    run(small, "--methods", "exact", "oracle")
    assert [float(row["unstable"]) for row in logged()] == [2 * 2 * 3] * 2
    assert [float(row["unstable"]) for row in logged("oracle")] == [4]


def test_gradient_steps_move_the_context_vector_and_no_weight(small):
    run(small, "--methods", "context", "--context", 3, "--alpha", 0.2)
    experiment = made(small, "--methods", "context", "--context", "3", "--alpha", "0.2")
    theta = load_checkpoint("out/context/checkpoint.npz").arrays["best"]
    plain = experiment.learner().policy.size
    assert theta.size == plain + 3 + 3 * 100
    adapted = experiment.adapt("context", theta, TEST, 2)
    moved = np.diff(adapted.thetas, axis=0)
    assert (moved[:, :, 3:] == 0).all() and (moved[:, :, :3] != 0).all()


def test_first_order_has_other_parameters_and_methods_are_chosen(small):
    results = run(small, "--methods", "exact", "first-order")
    assert {(row["method"], row["order"]) for row in results["rows"]} == {
        ("maml", 2),
        ("maml", 1),
    }
    thetas = [
        load_checkpoint(f"out/{name}/checkpoint.npz").arrays["theta"]
        for name in ("exact", "first-order")
    ]
    assert (thetas[0] != thetas[1]).any()


@pytest.mark.parametrize("env", SETTINGS)
def test_every_environment_runs(example, env):
    results = run(example, "--env", env, "--iterations", "1", "--methods", "exact")
    rows = select(results, "maml", 2)
    papers = SETTINGS[env].paper.get("exact", (None,) * 4)
    assert [row["paper"] for row in rows] == [*papers]
    assert results["max_kl"] == SETTINGS[env].max_kl
    assert np.isfinite([row["return"] for row in rows]).all()


@pytest.mark.parametrize("method", ["random", "oracle"])
def test_one_method_alone_makes_a_figure(example, method):
    results = run(example, "--methods", method, "--baseline-iterations", "1")
    assert {row["method"] for row in results["rows"]} == {method}
    assert Path("out/figure5.png").exists()


def test_sizes_are_those_of_the_environment_unless_they_are_given(bare):
    parser = bare.make_parser()
    for arguments, expected in (
        ([], (400, 500, 0.02, 20)),
        (["--env", "cheetah-velocity"], (800, 500, 0.01, 10)),
        (["--env", "ant-direction", "--iterations", "7"], (7, 1000, 0.01, 40)),
        (["--max-kl", "0.5", "--trajectories", "3"], (400, 500, 0.5, 3)),
        (["--fast"], (3, 3, 0.02, 8)),
    ):
        options, _ = bare.read_options(parser, arguments)
        bare.fill_in(options)
        recipe = bare.make_recipe(options)
        assert (
            recipe.iterations["exact"],
            recipe.iterations["pretrained"],
            recipe.max_kl,
            recipe.trajectories,
        ) == expected


def test_settings_of_the_outer_step_reach_the_learner(example):
    arguments = ["--decay", "0.9", "--max-kl", "0.3", "--alpha", "0.4", "--tasks", "7"]
    experiment = made(example, *arguments, "--trajectories", "5")
    for learner in (experiment.learner_of("exact"), experiment.tester()):
        settings = (learner.decay, learner.max_kl, float(learner.alpha), learner.order)
        assert settings == (0.9, 0.3, 0.4, 2)
    assert experiment.learner_of("exact").trajectories == 5
    assert experiment.recipe.tasks == 7


def test_help_names_every_option(bare, capsys):
    with pytest.raises(SystemExit) as stop:
        bare.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "figure 5 and table 5" in out and "default: 400 to 800, by --env" in out
    options = "env methods iterations baseline-iterations alpha max-kl tasks gif resume"
    assert all(f"--{option}" in out for option in options.split())


# --- what it computes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "name", "expected"),
    [
        ("cheetah-direction", "exact", [0.1, 0.05, 0.05]),
        ("cheetah-velocity", "pretrained", [0.02, 0.01, 0.01]),
        ("cheetah-direction", "random", [1.0, 0.5, 0.5]),
        ("ant-direction", "exact", [0.1, 0.001, 0.001]),
        ("ant-direction", "oracle", []),
    ],
)
def test_step_sizes_at_test_are_the_authors(example, monkeypatch, env, name, expected):
    given = []
    monkeypatch.setattr(MAMLTRPO, "adapt", lambda *arguments: given.extend(arguments))
    experiment = made(example, "--env", env)
    experiment.adapt(name, np.zeros(1), example.TEST, 3)
    np.testing.assert_allclose(given[-1], expected)


@pytest.mark.parametrize("env", ["cheetah-direction", "ant-position"])
def test_the_figure_shows_the_trajectories_of_the_test_to_the_last_bit(example, env):
    experiment = made(example, "--env", env)
    learner = experiment.tester()
    theta = learner.policy.init(np.random.default_rng(0))
    adapted = experiment.adapt("exact", theta, example.TEST, 3)
    batch, body = experiment.test_batch(learner, example.TEST, 3), learner.environment
    for task, j in ((0, 0), (1, 1)):
        states = example.states_of(body, batch, adapted, task, j)
        assert len(states) == HORIZON + 1
        seen = body.observe(states[None, :-1], batch.tasks[task : task + 1])[0]
        sampled = adapted.trajectories[j].observations[task, 0]
        np.testing.assert_array_equal(seen.astype(np.float32), sampled)


def drawn_films(example, monkeypatch, *arguments):
    """Return the films and the figure of a run."""
    shown, drawn = [], []
    original = example.draw_figure_5

    def keep(curves, training, films, floor, out):
        shown.extend(films)
        original(curves, training, films, floor, out)

    example.draw_figure_5 = keep
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, out: drawn.append(figure)
    )
    run(example, *arguments)
    return shown, drawn[0]


def test_the_figure_has_stick_figures_of_two_goals_before_and_after(
    example, monkeypatch
):
    arguments = ["--env", "cheetah-velocity", "--methods", "exact", "pretrained"]
    films, figure = drawn_films(example, monkeypatch, *arguments, "oracle")
    assert [film.title.partition(": ")[2] for film in films] == [
        *("before", "after one gradient step") * 2
    ]
    assert films[0].title != films[2].title
    above, below, *panels = figure.axes
    assert len(panels) == 4 and len(below.lines) == 3
    styles = [line.get_linestyle() for line in above.lines]
    assert styles.count(":") == 3 + 1  # the authors', and their entry in the legend
    for film, panel in zip(films, panels, strict=True):
        assert film.poses.shape == (HORIZON + 1, 8, 2, 2)
        sticks = panel.lines[1:]  # the first is the floor
        assert len(sticks) == figures.POSES * 8
        ends = np.array([line.get_xydata() for line in sticks])
        np.testing.assert_array_equal(ends[-8:], film.poses[-1])
        (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
        assert left < ends[..., 0].min() and ends[..., 0].max() < right
        assert low < ends[..., 1].min() and ends[..., 1].max() < high
    assert not np.array_equal(films[0].poses[-1], films[1].poses[-1])


@pytest.mark.usefixtures("painted")
def test_the_animation_moves_and_a_film_that_ends_early_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FRAMES", 10)
    image = pytest.importorskip("PIL.Image")
    poses = np.zeros((21, 1, 2, 2))
    poses[:, 0, 1] = 1.0
    poses[:, 0, :, 0] += np.arange(21)[:, None] / 10
    films = [figures.Film("a", "C0", poses), figures.Film("b", "C1", poses[:6])]
    figures.write_animation(films, True, tmp_path / "a.gif")
    with image.open(tmp_path / "a.gif") as animation:
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("L")))
    assert len(frames) == 10
    # Behind the sixth pose, the last of the lower film, only the upper one moves. A
    # palette of 256 colours changes shades a little.
    difference = np.abs(frames[4].astype(float) - frames[-1])
    middle = len(difference) // 2
    assert difference[:middle].max() > 100 and difference[middle:].max() < 40


def test_returns_of_the_authors_are_dotted_only_where_they_are_known(monkeypatch):
    from matplotlib.figure import Figure

    steps = np.arange(3)
    known = reinforcement_figures.Curve(
        "a", "C0", "o", steps, steps, steps, np.array([1.0, 2.0])
    )
    for paper, dotted in ((True, 2), (False, 0)):
        place = Figure().subfigures()
        reinforcement_figures.draw_returns(place, [known], [known], paper)
        above = place.axes[0]
        styles = [line.get_linestyle() for line in above.lines]
        assert styles.count(":") == dotted


def test_directions_are_reported_apart(small, capsys):
    small.FAST["test_tasks"] = 4
    small.draw = load_example("locomotion").draw
    small.draw.__globals__.update(draw_figure_5=lambda *_: None)
    results = run(small, "--methods", "random")
    rows = np.array(results["returns_by_goal"]["random"])
    assert [*rows[:, 0]] == sorted(rows[:, 0]) and {*rows[:, 0]} == {-1.0, 1.0}
    np.testing.assert_allclose(
        rows[:, 1:].mean(axis=0), [row["return"] for row in results["rows"]], atol=1e-4
    )
    out = capsys.readouterr().out
    for goal in (-1, 1):
        (line,) = [s for s in out.splitlines() if s.startswith(f"random, goal {goal} ")]
        means = rows[rows[:, 0] == goal, 1:].mean(axis=0)
        np.testing.assert_allclose([*map(float, line.split()[3:])], means, atol=0.006)


# --- resuming -------------------------------------------------------------------------


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(small):
    chosen = ["--methods", "exact", "pretrained", "oracle"]
    run(small, *chosen, "--iterations", 2, "--baseline-iterations", 3, out="whole")
    run(small, *chosen, "--iterations", 1, "--baseline-iterations", 2, out="part")
    sizes = ["--iterations", 2, "--baseline-iterations", 3]
    whole = read_strict_json(Path("whole/results.json"))
    resumed = run(small, *chosen, *sizes, "--resume", "part", out="part")
    assert resumed["rows"] == whole["rows"]
    assert resumed["best_iteration"] == whole["best_iteration"]
    clock = {"seconds", "physics_per_second"}
    for name in ("exact", "pretrained", "oracle"):
        rows = [
            [{k: v for k, v in r.items() if k not in clock} for r in logged(name, out)]
            for out in ("whole", "part")
        ]
        assert rows[0] == rows[1] and len(rows[0]) == (2 if name == "exact" else 3)
        arrays = [
            load_checkpoint(f"{out}/{name}/checkpoint.npz").arrays
            for out in ("whole", "part")
        ]
        for key in ("theta", "best"):
            np.testing.assert_array_equal(arrays[0][key], arrays[1][key])


def test_a_baseline_that_has_come_further_is_refused(small, capsys):
    run(small, "--methods", "oracle", "--baseline-iterations", 2)
    arguments = ["--fast", "--methods", "oracle", "--baseline-iterations", "1"]
    arguments += ["--backend", "numpy", "--resume", "out"]
    error = refusal(small, [*arguments, "--iterations", "9"], capsys)
    assert "expected at least 2 iterations" in error and "got 1" in error


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", "1"],
        ["--env", "cheetah-velocity"],
        ["--max-kl", "0.5"],
        ["--tasks", "3"],
        ["--trajectories", "4"],
        ["--alpha", "0.2"],
        ["--decay", "0.9"],
    ],
)
def test_a_checkpoint_of_another_run_is_refused(small, change, capsys):
    run(small, "--iterations", 0, "--methods", "exact")
    arguments = ["--fast", "--methods", "exact", "--resume", "out", *change]
    assert "expected a checkpoint with" in refusal(small, arguments, capsys)


def test_a_checkpoint_of_another_version_of_mujoco_is_refused(
    small, monkeypatch, capsys
):
    run(small, "--iterations", 0, "--methods", "exact")
    monkeypatch.setattr(small, "version", lambda name: f"{name} 1.31")
    arguments = ["--fast", "--methods", "exact", "--resume", "out"]
    assert "with mujoco = 'mujoco 1.31'" in refusal(small, arguments, capsys)


# --- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mujoco", "gymnasium"])
def test_a_missing_package_ends_in_one_line_with_the_remedy(
    bare, name, monkeypatch, capsys, folder
):
    if name == "gymnasium":
        pytest.importorskip("mujoco")
    monkeypatch.setitem(sys.modules, name, None)
    error = refusal(bare, ["--fast"], capsys)
    assert f'{name} is missing: pip install "tinymaml[locomotion]"' in error
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--env", "snail-velocity"], "argument --env: invalid choice"),
        (["--methods", "magic"], "argument --methods: invalid choice"),
        (["--methods"], "argument --methods: expected at least one argument"),
        (["--max-kl", "0"], "argument --max-kl: expected a positive number"),
        (["--decay", "1.5"], "argument --decay: expected a number from 0 to 1"),
        (["--decay", "x"], "argument --decay: expected a number from 0 to 1"),
        (["--alpha", "nan"], "argument --alpha: expected a positive number"),
        (["--tasks", "0"], "argument --tasks: expected a whole number of at least 1"),
        (["--baseline-iterations", "x"], "argument --baseline-iterations: expected"),
        (["--context", "3"], "argument --context: expected context among --methods"),
    ],
)
def test_bad_options_are_refused_in_one_line(bare, arguments, complaint, capsys):
    assert complaint in refusal(bare, arguments, capsys)


def test_an_alpha_too_large_ends_the_run_in_one_line(small, capsys):
    arguments = ["--fast", "--alpha", "1e3", "--methods", "exact", "--backend", "numpy"]
    assert small.main([*arguments, "--out", "out"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert "error: iteration 1: alpha: " in last
