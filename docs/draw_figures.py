"""Make the committed figures of the site that no notebook draws.

    python docs/draw_figures.py shrink results/sinusoid/figure2.png sinusoid-figure-2
    python docs/draw_figures.py episode --data DIR
    python docs/draw_figures.py pictures
    python docs/draw_figures.py bodies

`shrink` makes a figure of an example small enough for the repository: 1,400 pixels
wide, 96 colours. `episode` draws one Omniglot task before and after adaptation, from
the initialisation that comes with the package. `pictures` makes the thumbnails of two
examples that draw nothing, from their images. `bodies` draws the half-cheetah and the
ant as stick figures, without a thumbnail, and needs MuJoCo. All else writes into
docs/_static/figures/ and makes a thumbnail of 400 x 280 pixels in
docs/_static/gallery/; --crop says of which part, as fractions of width and height.

Left out: the figures that pages draw themselves when they are built.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

import tinymaml as tm
from tinymaml.rl.locomotion import Ant, HalfCheetah
from tinymaml.tasks import miniimagenet, omniglot
from tinymaml.tasks.episodes import Episodes

HERE = Path(__file__).resolve().parent
FIGURES, THUMBNAILS = HERE / "_static" / "figures", HERE / "_static" / "gallery"
WIDTH, THUMBNAIL, LARGEST = 1400, (400, 280), 150_000


COLOURS, METHOD = 96, Image.Quantize.MAXCOVERAGE
WHOLE = (0.0, 0.0, 1.0, 1.0)


def write(picture: Image.Image, name: str, crop: Sequence[float] = WHOLE) -> None:
    """Write a figure with few colours, and its thumbnail on white."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    for folder in (FIGURES, THUMBNAILS):
        folder.mkdir(parents=True, exist_ok=True)
    target = FIGURES / f"{name}.png"
    file = io.BytesIO()
    picture.quantize(COLOURS, METHOD, kmeans=2, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    if file.tell() > LARGEST:
        raise SystemExit(f"{target}: {file.tell():,} bytes are too many")
    target.write_bytes(file.getvalue())
    thumbnail(picture, name, crop)


def thumbnail(picture: Image.Image, name: str, crop: Sequence[float] = WHOLE) -> None:
    """A part of a figure, as large as fits into the shape of a card."""
    sizes = (picture.width, picture.height) * 2
    small = picture.crop([round(a * b) for a, b in zip(crop, sizes, strict=True)])
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    card = Image.new("RGB", THUMBNAIL, "white")
    card.paste(small, ((400 - small.width) // 2, (280 - small.height) // 2))
    card.quantize(COLOURS, METHOD, kmeans=2, dither=Image.Dither.NONE).save(
        THUMBNAILS / f"{name}.png", optimize=True
    )


def picture_of(figure: plt.Figure) -> Image.Image:
    """A Matplotlib figure as a picture."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def draw_episode(data: Path | None, number: int) -> None:
    """Support drawings, query drawings, and the probabilities before and after."""
    start = tm.pretrained("omniglot-5w1s")
    images = omniglot.standin() if data is None else omniglot.load(data)
    test = omniglot.split(images)["test"]
    sample = Episodes(
        test.images, test.labels, ways=5, shots=1, queries=1, rotations=True
    )
    tasks = sample.fixed(seed=4, count=number + 1)
    tasks = tm.Tasks(*(array[number:] for array in tasks))
    steps = start.recipe.test_steps
    maml = start.recipe.maml(start.network)
    logits = maml.predict(start.network, start.theta, tasks, steps)[0]  # (J + 1, 5, 5)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    support, query = (y[0].argmax(-1) for y in (tasks.y_support, tasks.y_query))
    order, rows = np.argsort(support), np.argsort(query)

    figure = plt.figure(figsize=(10.5, 5.2), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    panels = left.subplots(5, 2)
    panels[0, 0].set_title("support:\none drawing")
    panels[0, 1].set_title("query:\nwhich is it?")
    for line, s, q in zip(panels, order, rows, strict=True):
        pair = tasks.x_support[0, s], tasks.x_query[0, q]
        for panel, image in zip(line, pair, strict=True):
            panel.imshow(image.squeeze(), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"class {support[s] + 1}")
    maps = right.subplots(1, 2, sharey=True)
    for panel, step in zip(maps, (0, steps), strict=True):
        shown = probabilities[step][rows]
        panel.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), p in np.ndenumerate(shown):
            panel.text(
                j, i, f"{p:.2f}", ha="center", va="center", color="wk"[int(p < 0.6)]
            )
        right_ones = int((shown.argmax(1) == np.arange(5)).sum())
        title = "before adaptation" if step == 0 else f"after {step} steps"
        panel.set_title(f"{title}: {right_ones} of 5 right")
        panel.set_xticks(range(5), range(1, 6))
        panel.set_yticks(range(5), range(1, 6))
        panel.set_xlabel("probability of class")
    maps[0].set_ylabel("query drawing of class")
    write(picture_of(figure), "omniglot-episode")


def draw_pictures() -> None:
    """Five classes with three images each, of two examples."""
    sys.path.append(str(HERE.parent / "examples"))
    from own_images import draw_stripes

    stripes, labels = draw_stripes(np.random.default_rng(0))
    standin = miniimagenet.standin()["train"]
    sets = {
        "own-images": [stripes[labels == label][:3] for label in range(5)],
        "miniimagenet-standin": [
            standin.images[standin.labels == label][:3]
            for label in np.unique(standin.labels)[::8][:5]
        ],
    }
    for name, classes in sets.items():
        figure = plt.figure(figsize=(4, 2.8), dpi=100, layout="constrained")
        panels = figure.subplots(3, 5)
        for column, images in zip(panels.T, classes, strict=True):
            for panel, image in zip(column, images, strict=True):
                panel.imshow(image.squeeze(), cmap="gray")
                panel.set_axis_off()
        thumbnail(picture_of(figure), name)


def draw_bodies() -> None:
    """Half-cheetah and ant at rest, from the side, on one scale."""
    figure = plt.figure(figsize=(7, 2.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, body, name in zip(
        panels, (HalfCheetah(), Ant()), ("half-cheetah", "ant"), strict=True
    ):
        noise = np.zeros((1, 1, body.start_noise))
        state = body.start(np.ones((1, 1)), 1, noise)[0, 0]
        if isinstance(body, Ant):
            # Its torso is a ball, which a skeleton of lines leaves out.
            height = state[3]  # behind the time, x and y
            panel.add_patch(plt.Circle((0, height), 0.25, color="0.75", linewidth=0))
        panel.plot(*body.skeleton(state)[..., [0, 2]].T, color="#0072B2", linewidth=4)
        panel.axhline(0, color="0.5", linewidth=1)
        panel.set(title=name, xlabel="metres", aspect="equal", xlim=(-1.1, 1.1))
        panel.set_ylim(-0.1, 1.1)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURES / "locomotion-bodies.svg", metadata={"Date": None})


def main() -> None:
    """Read the options and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=lambda options: parser.error("which figure?"))
    kinds = parser.add_subparsers()
    shrink = kinds.add_parser("shrink", help="a figure that an example has made")
    shrink.add_argument("file", type=Path)
    shrink.add_argument("name")
    shrink.add_argument("--crop", type=float, nargs=4, default=WHOLE)
    shrink.set_defaults(run=lambda o: write(Image.open(o.file), o.name, o.crop))
    episode = kinds.add_parser("episode", help="an Omniglot task before and after")
    episode.add_argument("--data", type=Path, help="folder (default: stand-ins)")
    episode.add_argument("--number", type=int, default=0, help="which test task")
    episode.set_defaults(run=lambda o: draw_episode(o.data, o.number))
    pictures = kinds.add_parser("pictures", help="thumbnails of images")
    pictures.set_defaults(run=lambda o: draw_pictures())
    bodies = kinds.add_parser("bodies", help="half-cheetah and ant")
    bodies.set_defaults(run=lambda o: draw_bodies())
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
