"""Use the pages to play with as a reader does, in a browser, and look for faults.

From the root of a clone, after the build:

    python docs/check_explorables.py                    # all pages
    python docs/check_explorables.py --only walk-back   # one of them
    python docs/check_explorables.py --pictures DIR     # and pictures, to be looked at
    python docs/check_explorables.py --figures          # the pages' figures, again

Each page is opened from a local file, with no network, at the width of a desk and of a
phone, light and dark, with and without reduced motion. Its own function below draws,
drags, presses keys, adapts and trains, and asserts what must then be seen. Nothing may
be requested from elsewhere, and no script may complain. Without JavaScript the page
shows its figure and sentence. The browser is Chromium, driven by Playwright; without
either, a line says that nothing was checked.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from math import cos, log10, sin
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from check_site import launch, why_no_browser

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "_static" / "figures"
DESK, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
# (window, colour scheme, reduced motion, whether workers run): what a page is used in.
SETTINGS = (
    (DESK, "light", "no-preference", True),
    (DESK, "dark", "reduce", False),
    (PHONE, "light", "reduce", True),
)
# A browser that refuses to run the text of a worker: the page must compute itself.
NO_WORKER = """window.Worker = class {
  constructor() { setTimeout(() => this.onerror({ message: "blocked" }), 20); }
  postMessage() {}
  terminate() {}
};"""
# Chance, the same in every run: a new goal could lie where the next tap goes, and a tap
# on the goal moves nothing.
CHANCE = """let number = 1;
Math.random = () => (number = (16807 * number) % 2147483647) / 2147483647;"""
Check = Callable[[Any], None]


# --- what every check is made of ------------------------------------------------------


def middle(page: Any, handle: Any) -> tuple[float, float]:
    """Scroll a handle to the middle of the window; return where it then is.

    At the edge of the window it may lie under the header of a phone.
    """
    handle.evaluate("node => node.scrollIntoView({ block: 'center' })")
    box = None
    while box != (box := handle.bounding_box()):  # until the page has scrolled
        page.wait_for_timeout(50)
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, handle: Any, across: float, down: float) -> None:
    """Move a handle with the mouse by some pixels."""
    x, y = middle(page, handle)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across / 2, y + down / 2)
    page.mouse.move(x + across, y + down)
    page.mouse.up()


def swipe(page: Any, handle: Any, across: float, down: float) -> None:
    """Move a handle with a finger by some pixels; the page must not scroll."""
    x, y = middle(page, handle)
    before = page.evaluate("scrollY")
    session = page.context.new_cdp_session(page)
    for i in range(9):
        touches = [{"x": x + across * i / 8, "y": y + down * i / 8}]
        kind = "touchMove" if i else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.evaluate("scrollY") == before, "a finger on a handle scrolls the page")


def has_touch(page: Any) -> bool:
    """Say whether the page is used with a finger."""
    return bool(page.evaluate("navigator.maxTouchPoints > 0"))


def handle(page: Any, label: str) -> Any:
    """Return the handle of a name."""
    return page.get_by_role("slider", name=label)


def is_off(button: Any) -> bool:
    """Say whether a button does nothing now."""
    return bool(button.get_attribute("aria-disabled") == "true")


def expect(fact: bool, claim: str) -> None:
    """Raise AssertionError with the claim unless it is a fact."""
    if not fact:
        raise AssertionError(claim)


# --- one function for each page -------------------------------------------------------


def check_walk_back(page: Any) -> None:
    """Drag the start, step back through the inner loop, change J and alpha."""

    def rows(number: int) -> list[list[str]]:
        """The texts of a table: 0 compares with the true slope, 1 is the recursion."""
        table = page.locator(".x-walk-table").nth(number)
        read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        lines: list[list[str]] = table.locator("tbody tr").evaluate_all(read)
        return lines

    def numbers(pair: str) -> list[float]:
        return [float(n) for n in pair.strip("()").replace("−", "-").split(", ")]

    def lit() -> str:
        return " ".join(page.locator(".is-lit").all_inner_texts())

    def press(name: str) -> None:
        page.get_by_role("button", name=name).click()

    def choose(name: str) -> None:
        page.locator(".x-choice label").get_by_text(name, exact=True).click()

    def arrive(what: str) -> None:
        """Walk all the way back, and find that v_0 is the true slope."""
        press("All the way")
        page.wait_for_selector(".x-walk-table tr.is-lit >> text=v₀")
        true_slope(what)

    def true_slope(what: str) -> None:
        _, exact, differences = rows(0)
        for a, b in zip(numbers(exact[1]), numbers(differences[1]), strict=True):
            expect(abs(a - b) <= 0.011 * abs(a), f"{what}: {exact[1]} is no true slope")
        expect(exact[3] == "nothing", f"{what}: v₀ is off by {exact[3]}")
        same = page.get_by_text("The walk gives the same to 1e-6.").count()
        expect(same == 1, f"{what}: the walk is not tinymaml's meta_gradient")

    start = handle(page, "Start theta 0")
    expect(rows(0)[0][1] == "(2, −1)", "v₂ is not (2, −1)")
    expect(rows(1)[1][2:] == ["…", "…"], "the recursion is shown before it is walked")
    expect("v = grad(" in lit() and "hvp" not in lit(), "the wrong lines are lit")
    page.get_by_role("button", name="One step back").focus()
    page.keyboard.press("Enter")
    expect(rows(1)[1][2:] == ["(1.5, 0.5)", "(0.5, −1.5)"], "v₁ is not (0.5, −1.5)")
    expect("v = v - hvp(" in lit() and "(0.5, −1.5)" in lit(), "v₁ is not lit")
    press("Again")  # in the middle of a movement
    expect(rows(1)[1][2:] == ["…", "…"], "Again does not begin again")
    arrive("quadratic")
    expect(rows(0)[1][1] == "(0.75, −1)", "v₀ is not (0.75, −1)")
    expect(rows(0)[0][3] == "27°, × 1.79", "v₂ is not 27 degrees off")
    name = page.evaluate("document.activeElement.textContent")
    expect(name == "All the way", f"after the walk the focus is on {name!r}")
    expect(is_off(page.get_by_role("button", name=name)), "the walk could go on")

    choose("Parallel")
    arrive("parallel")
    before = start.get_attribute("aria-valuetext")
    drag(page, start, -80, -20)
    expect(start.get_attribute("aria-valuetext") != before, "a drag moves no start")
    expect(rows(0)[0][3] == "0°, × 4", f"parallel: v₂ is {rows(0)[0][3]} off")
    true_slope("parallel, dragged")

    if has_touch(page):
        before = start.get_attribute("aria-valuetext")
        swipe(page, start, 30, 40)
        after = start.get_attribute("aria-valuetext")
        moved = [b - a for a, b in zip(numbers(before), numbers(after), strict=True)]
        unit = page.locator(".x-plot .x-ground").first.bounding_box()["width"] / 6
        close = abs(moved[0] - 30 / unit) + abs(moved[1] + 40 / unit) < 0.1
        expect(close, f"a finger moves the start by {moved}")
        true_slope("parallel, with a finger")

    choose("Quartic")
    arrive("quartic")
    expect(rows(0)[1][1] == "(−0.313, 0.383)", f"quartic: v₀ is {rows(0)[1][1]}")
    expect("larger" in page.locator(".x-status").inner_text(), "the sign is not told")
    page.get_by_label("α").focus()
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    expect(rows(0)[1][1].startswith("(0.0"), f"alpha 0.08: v₀ is {rows(0)[1][1]}")
    true_slope("quartic, alpha 0.08")

    choose("Saddle")
    arrive("saddle")
    expect(rows(0)[0][3] == "15°, × 0.25", f"saddle: v₄ is {rows(0)[0][3]} off")
    start.focus()
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    expect("(1.5, −1.1)" in start.get_attribute("aria-valuetext"), "keys do not move")
    true_slope("saddle, in the valley")
    factor = float(rows(0)[0][3].split("× ")[1])
    expect(factor > 10, f"in the valley v₄ is only {factor} times as long")

    choose("Quadratic")
    choose("5")
    expect(len(rows(1)) == 6, "five steps have not six rows")
    arrive("five steps")
    choose("Q after J steps, over θ₀")
    plane = page.locator(".x-plot").first
    expect(
        plane.locator(".x-line.x-muted").count() > 10, "no contours of the meta-loss"
    )
    box = plane.locator(".x-ground").bounding_box()
    plane.locator(".x-ground").click(position={"x": box["width"] * 0.5, "y": 20})
    true_slope("tapped")
    choose("Quartic")
    page.get_by_label("α").fill("1")
    expect("runs away" in page.locator(".x-status").inner_text(), "alpha 1 converges")
    choose("5")
    plane.locator(".x-ground").click(position={"x": box["width"] - 4, "y": 4})
    press("All the way")
    page.wait_for_selector(".x-walk-table tr.is-lit >> text=v₀")
    expect("not a number" in rows(0)[1][1], "so far outside v₀ is still a number")
    place = plane.evaluate("plot => plot.outerHTML")
    expect("NaN" not in place, "a place in the picture is no number")

    choose("S and Q")
    choose("Parallel")  # and back, so that the page stands as at the beginning
    choose("Quadratic")
    arrive("quadratic, again")
    plane.locator("text", has_text="−H₀(αv₁)").wait_for()  # the movement has ended
    arrows = plane.locator(".x-arrow.x-support")
    expect(arrows.count() == 2, f"{arrows.count()} products are drawn, not 2")


def rows_of(page: Any) -> dict[str, list[str]]:
    """The cells of the page's table, by the name in the first of each row."""
    rows = page.locator(".x-table tbody tr").all()
    cells = [row.locator("th, td").all_inner_texts() for row in rows]
    return {name.strip(): values for name, *values in cells}


def last_number(cell: str) -> float:
    """The number behind the arrow of a cell."""
    return float(cell.split("→")[-1].replace("−", "-"))


def press(page: Any, name: str) -> None:
    """Press a button."""
    page.get_by_role("button", name=name, exact=True).click()


def check_four_starts(page: Any) -> None:
    """Move points, take steps, meta-train for a while."""
    stage = page.locator(".explorable-stage")
    lines = page.locator(".x-plot").first.locator(".x-line")
    points = page.get_by_role("slider", name="Point ")

    def on_wave() -> dict[str, float]:
        return {name: last_number(cells[2]) for name, cells in rows_of(page).items()}

    # MAML continues the wave into the half without points; the pretrained start not.
    errors = on_wave()
    expect(points.count() == 5, "five points are there at first")
    expect(errors["MAML"] < 0.5 * errors["pretrained"], f"after a step: {errors}")
    # Before any step both draw about the mean of all waves.
    press(page, "Back to 0")
    page.get_by_label("the mean of all waves").check()
    expect(stage.get_by_text("After 0 steps").is_visible(), "the status says 0 steps")
    # The mean squared distance of -1.62 cos x from the wave 4 sin(x - 1).
    xs = [i / 20 - 5 for i in range(201)]
    mean = sum((1.62 * cos(x) + 4 * sin(x - 1)) ** 2 for x in xs) / len(xs)
    errors = on_wave()
    for name in ("pretrained", "MAML"):
        near = 0.8 * mean < errors[name] < 1.25 * mean
        expect(near, f"{name} errs by {errors[name]}, -1.62 cos x by {mean:.3g}")
    for _ in range(3):
        press(page, "Take a step")
    expect(stage.get_by_text("After 3 steps").is_visible(), "three steps were taken")
    page.wait_for_timeout(400)  # the curves move for a third of a second
    # A point that is dragged, moved with keys, added by a tap and removed.
    first = handle(page, "Point 1")
    before, errors = first.get_attribute("aria-valuetext"), on_wave()
    (swipe if has_touch(page) else drag)(page, first, 30, -60)
    page.wait_for_function(
        "before => document.querySelector('.x-handle').getAttribute('aria-valuetext')"
        " !== before",
        arg=before,
    )
    page.wait_for_timeout(50)  # it is drawn with the next frame
    expect(on_wave()["MAML"] != errors["MAML"], "a dragged point moves the fit")
    first.focus()
    before = first.get_attribute("aria-valuetext")
    page.keyboard.press("Shift+ArrowDown")
    page.wait_for_timeout(50)
    expect(first.get_attribute("aria-valuetext") != before, "a key moves a point")
    ground = page.locator(".x-plot").first.locator(".x-ground")
    place = {"x": 0.92 * ground.bounding_box()["width"], "y": 20}
    (ground.tap if has_touch(page) else ground.click)(position=place)
    expect(points.count() == 6, "a tap adds a point")
    handle(page, "Point 6").focus()
    page.keyboard.press("Delete")
    expect(points.count() == 5, "the key Delete removes it")
    for _ in range(5):
        press(page, "Add a point")
    full = page.get_by_role("button", name="Add a point")
    expect(points.count() == 10 and is_off(full), "there is room for ten")
    page.keyboard.press("Enter")
    expect(points.count() == 10, "a button that is off does nothing")
    name = page.evaluate("document.activeElement.textContent")
    expect(name == "Add a point", f"after ten points the focus is on {name!r}")
    for _ in range(5):
        press(page, "Remove a point")
    press(page, "Onto the wave")
    # In one half, or all over: the numbers come back.
    errors = on_wave()
    page.get_by_label("all points in one half").uncheck()
    expect(on_wave()["MAML"] < errors["MAML"], "points all over the range are better")
    page.get_by_label("all points in one half").check()
    expect(on_wave() == errors, "the points are where they were")
    # A large alpha: MAML diverges first, in the end all do, and no picture has a NaN.
    alpha = page.get_by_label("for all starts")
    for size, alive in (
        ("0.02", "pretrained random"),
        ("0.2", "pretrained"),
        ("3.2", ""),
    ):
        value = min(round(log10(float(size)) / 0.05) * 0.05, 0.5)
        alpha.evaluate(
            "(input, v) => { input.value = v; "
            "input.dispatchEvent(new Event('input')); }",
            value,
        )
        for name, cells in rows_of(page).items():
            expect(cells[0] == size, f"alpha is {cells[0]}, not {size}")
            fits = (cells[1] == "diverged") == (name not in alive.split())
            expect(fits, f"{name} at alpha = {size}: {cells}")
    alpha.focus()
    page.keyboard.press("ArrowLeft")
    expect(rows_of(page)["MAML"][0] == "2.8", "a key moves alpha")
    drawn = page.locator(".x-plot").evaluate_all("all => all.map((p) => p.innerHTML)")
    expect("NaN" not in "".join(drawn), "no NaN in a picture")
    press(page, "Each its own")
    expect(on_wave() == errors, "each start has its own alpha again")
    # Meta-training: the loss falls, a fifth start appears, and Stop stops it.
    count, loss = (page.locator(".x-readout output").nth(i) for i in (0, 1))
    press(page, "Train")
    press(page, "Stop")  # perhaps before there is a value
    press(page, "Train again")
    page.wait_for_function(
        "Number(document.querySelector('.x-readout output').textContent) >= 400"
    )
    press(page, "Stop")
    expect(float(loss.inner_text()) < 3, f"the loss fell to {loss.inner_text()} only")
    said = stage.get_by_text("the loss went from").inner_text()
    start, end = (float(n.strip(".")) for n in said.split("from")[1].split(" to "))
    expect(end < 0.6 * start, f"the loss after the inner step falls: {said}")
    stopped = count.inner_text()
    errors = on_wave()
    expect("yours" in errors and lines.count() >= 6, "a fifth start is drawn")
    curve = page.locator(".x-plot").last.locator(".x-line.x-yours").last
    box = curve.bounding_box()
    expect(box is not None and box["width"] > 50, f"the loss is drawn in {box}")
    expect(errors["yours"] < errors["random"], f"it is better than random: {errors}")
    page.wait_for_timeout(300)
    expect(count.inner_text() == stopped, "training has stopped")


def check_five_characters(page: Any) -> None:
    """Draw, take samples, take the inner step."""

    def shown() -> tuple[str, list[int]]:
        """The sentence, and the numbers of test drawings that are right, in the end."""
        page.wait_for_selector(".x-draw .x-table:not([aria-busy])")
        cells = page.locator(".x-draw .x-table td:last-child").all_inner_texts()
        right = [int(text.split("→")[1].split("of")[0]) for text in cells]
        return page.locator(".x-draw .x-status").inner_text(), right

    def choose(name: str, label: str) -> None:
        group = page.get_by_role("group", name=name)
        group.get_by_text(label, exact=True).click()

    def plus(number: int, across: float = 0.0) -> None:
        """Draw a plus sign into a pad, with the mouse."""
        pad = page.locator(".x-pad").nth(number)
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        for start, end in (((0.5, 0.2), (0.5, 0.8)), ((0.2, 0.5), (0.8, 0.5))):
            x, y, to_x, to_y = (
                box[corner] + box["width"] * (part + across * (corner == "x"))
                for corner, part in zip("xyxy", start + end, strict=True)
            )
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(to_x, to_y, steps=8)
            page.mouse.up()

    # As it is at first: one step, and the query is told apart, unless it is alone.
    sentence, (batch, alone, support) = shown()
    expect("taken for 3 (100 %): right" in sentence, f"at first: {sentence}")
    expect(batch >= 38 and support >= 36, f"right at first: {batch}, {support} of 40")
    expect(alone <= 14, f"right at first, alone: {alone} of 40")
    choose("Mean and variance from", "the query alone")
    expect(page.locator("canvas.is-source").count() == 1, "one drawing is the source")
    choose("Mean and variance from", "support set")
    expect("right" in shown()[0], f"with the support set: {shown()[0]}")
    # Without a step it guesses; with a small one it does not learn.
    choose("Inner steps J", "0")
    expect(sum(shown()[1]) < 40, f"without a step: {shown()[1]}")
    choose("Inner steps J", "1")
    page.get_by_role("slider").focus()
    for _ in range(50):
        page.keyboard.press("ArrowLeft")
    expect(shown()[1][0] < 25, f"with alpha = 0.04: {shown()[1]}")
    for _ in range(50):
        page.keyboard.press("ArrowRight")
    expect(shown()[1][0] == batch, f"with alpha = 0.4 again: {shown()[1]}")
    # A plus sign, drawn with the mouse and, as the query, with the keyboard.
    query = page.locator(".x-pad").nth(5)
    press(page, "Clear character 2")
    expect("blank" in shown()[0], f"with a blank character: {shown()[0]}")
    plus(1)
    press(page, "Clear the query")
    if page.viewport_size["width"] < 500:
        query.tap()
        expect("1 stroke," in query.get_attribute("aria-label"), "a tap is a dot")
        page.keyboard.press("Backspace")
    choose("It is meant to be", "2")
    query.focus()
    keys = ["ArrowUp"] * 8 + [" "] + ["ArrowDown"] * 15 + [" "] + ["ArrowUp"] * 8
    keys += ["ArrowLeft"] * 8 + [" "] + ["ArrowRight"] * 15 + [" "]
    for key in keys:
        page.keyboard.press(key)
    label = query.get_attribute("aria-label")
    expect("2 strokes, pen up" in label, f"after drawing with keys: {label}")
    expect("taken for 2" in shown()[0] and "right" in shown()[0], f"a plus: {shown()}")
    # A stroke that is deleted under the mouse has ended.
    box = query.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.keyboard.press("Delete")
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.up()
    expect("0 strokes" in query.get_attribute("aria-label"), "a stroke came back")
    # Another one, somewhere else; one stroke less; and by the program.
    plus(5, across=0.05)
    expect("taken for 2" in shown()[0], f"a plus on the right: {shown()[0]}")
    press(page, "Undo a stroke of the query")
    expect("1 stroke," in query.get_attribute("aria-label"), "a stroke is undone")
    press(page, "The program draws the query")
    press(page, "Draw by another hand character 2")
    expect("taken for 2" in shown()[0], f"by the program: {shown()[0]}")
    press(page, "Five new samples")
    expect(shown()[1][0] >= 36, f"with new samples: {shown()}")
    choose("Mean and variance from", "batch of five queries")


def check_find_the_goal(page: Any) -> None:
    """Take steps, move the goal by keys, mouse and taps, change alpha, draw again."""
    maml, pretrained = 0, 1

    def settle() -> None:
        fresh = "!document.querySelector('.x-table.is-old')"
        page.wait_for_function(fresh)

    def returns(policy: int) -> list[float]:
        cells = page.locator(".x-table").nth(policy).locator("td:nth-child(2)")
        return [float(text.replace("−", "-")) for text in cells.all_inner_texts()]

    def choose(step: int) -> None:
        page.locator(".x-choice label").nth(step).click()

    def goal() -> tuple[float, float]:
        texts = {
            handle(page, f"Goal, {name}").get_attribute("aria-valuetext")
            for name in ("MAML", "Pretrained")
        }
        expect(len(texts) == 1, f"two goals: {texts}")
        x, y = texts.pop().replace("−", "-").strip("()").split(",")
        return float(x), float(y)

    def tap(policy: int, x: float, y: float) -> None:
        ground = page.locator(".x-plot .x-ground").nth(policy)
        box = ground.bounding_box()
        at = {"x": (x + 1) / 2 * box["width"], "y": (1 - y) / 2 * box["height"]}
        ground.click(position=at)
        settle()
        expect(
            max(abs(goal()[0] - x), abs(goal()[1] - y)) < 0.02,
            f"a tap at {x, y} puts the goal at {goal()}",
        )

    def arrows() -> int:
        return page.locator(".x-plot").first.locator(".x-arrow").count()

    def way() -> str:
        return page.locator(".x-line.x-exact").first.get_attribute("d")

    settle()
    for policy in (maml, pretrained):
        expect(abs(returns(policy)[0] + 50) < 2, "a start policy should stand still")
    expect("Before any step" in page.locator(".x-status").inner_text(), "no status")
    choose(1)
    after = [returns(policy)[1] for policy in (maml, pretrained)]
    expect(after[0] > -20 and after[1] < -40, f"returns after a step: {after}")
    status = page.locator(".x-status").inner_text()
    expect("After 1 step. MAML" in status, f"status after a step: {status}")
    page.get_by_label("First step's α").nth(pretrained).fill("0.2")
    settle()
    expect(returns(pretrained)[1] > -20, "alpha = 0.2 should not overshoot")
    page.get_by_label("First step's α").nth(pretrained).fill("0.5")

    choose(0)
    expect(arrows() > 50, "no arrows")
    page.get_by_label("Policy gradient").uncheck()
    expect(arrows() == 0, "arrows that were switched off")
    page.get_by_label("Policy gradient").check()
    drag(page, handle(page, "Goal, MAML"), -40, 60)
    settle()
    expect(goal()[0] < 0.25 and goal()[1] < 0.3, f"dragged to {goal()}")
    before, x = way(), goal()[0]
    handle(page, "Goal, Pretrained").press("Shift+ArrowLeft")
    settle()
    expect(abs(goal()[0] - x + 0.2) < 1e-6, "Shift and a key move the goal by 0.2")
    expect(way() == before, "the goal has moved the paths of a policy without a step")

    tap(pretrained, 0.9, 0.9)
    expect(returns(maml)[1] < -70, "one step should not reach a goal that far away")
    expect(returns(maml)[3] > -50, "three steps should come closer")
    tap(maml, 0, 0)
    for policy in (maml, pretrained):
        first, second, *_ = returns(policy)
        expect(second < first, f"at the start a step is harmful: {first}, {second}")
    old = returns(maml)
    page.get_by_role("button", name="Draw paths again").click()
    settle()
    expect(returns(maml)[0] != old[0], "the paths were not drawn again")
    page.get_by_role("button", name="New goal").click()
    settle()
    expect(max(map(abs, goal())) <= 0.5, f"a new goal outside of the square: {goal()}")
    tap(maml, 0.3, 0.4)
    choose(1)


CHECKS: dict[str, Check] = {
    "walk-back": check_walk_back,
    "four-starts": check_four_starts,
    "five-characters": check_five_characters,
    "find-the-goal": check_find_the_goal,
}


# --- running them ---------------------------------------------------------------------


def address_of(html: Path, name: str) -> str:
    """The address of a page's file."""
    return (html / "explorables" / f"{name}.html").as_uri()


def faults_of(
    browser: Any, html: Path, name: str, setting: int, pictures: Path | None
) -> Iterator[str]:
    """Yield what is wrong with one page in one of the settings."""
    window, scheme, motion, workers = SETTINGS[setting]
    faults: list[str] = []
    phone = window is PHONE
    context = browser.new_context(
        viewport=window,
        color_scheme=scheme,
        reduced_motion=motion,
        has_touch=phone,
        is_mobile=phone,
    )
    page = context.new_page()
    page.add_init_script(CHANCE)
    if not workers:
        page.add_init_script(NO_WORKER)
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on(
        "console",
        lambda message: (
            faults.append(f"console: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:", "blob:"))
            else faults.append(f"requests {request.url}")
        ),
    )
    page.goto(address_of(html, name), wait_until="load")
    sources = page.locator("script[src*='explorables/']").evaluate_all(
        "scripts => scripts.map((script) => script.getAttribute('src'))"
    )
    faults += [f"no checksum behind {src}" for src in sources if "?v=" not in src]
    try:
        page.wait_for_selector(".explorable.is-alive")
        CHECKS[name](page)
    except Exception as error:
        faults.append(str(error).split("\n")[0] or repr(error))
    across = page.evaluate("document.documentElement.scrollWidth")
    if across > window["width"] + 1:
        faults.append(f"the page is {across} pixels wide")
    if pictures:
        file = pictures / f"{name}-{window['width']}-{scheme}.png"
        page.screenshot(path=str(file), full_page=True)
    context.close()
    where = f"{name}, {window['width']} pixels, {scheme}, motion {motion}"
    yield from (f"{where}: {fault}" for fault in faults)


def faults_without_script(browser: Any, html: Path, name: str) -> Iterator[str]:
    """Yield what is wrong with one page where there is no JavaScript."""
    context = browser.new_context(java_script_enabled=False, viewport=DESK)
    page = context.new_page()
    page.goto(address_of(html, name))
    if not page.locator(".explorable img").is_visible():
        yield f"{name}, without JavaScript: no figure"
    if not page.locator(".explorable p").last.inner_text().strip():
        yield f"{name}, without JavaScript: no sentence"
    context.close()


def draw_figure(browser: Any, html: Path, name: str) -> None:
    """Draw what stands on a page without JavaScript: the stage after its check."""
    from PIL import Image  # only the figures want it, and only here

    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.add_init_script(CHANCE)
    page.goto(address_of(html, name), wait_until="load")
    page.wait_for_selector(".explorable.is-alive")
    page.add_style_tag(content=".back-to-top { display: none !important; }")
    CHECKS[name](page)
    file = FIGURES / f"explorable-{name}.png"
    page.locator(".explorable-stage").screenshot(path=str(file))
    context.close()
    # A palette takes a third of the bytes; with fewer colours thin lines lose theirs.
    palette = Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(file, optimize=True)


def check(
    html: Path, name: str, setting: int | None, pictures: Path | None, figures: bool
) -> list[str]:
    """Return what is wrong with one page, in a browser of its own; or draw it again.

    setting: a number in SETTINGS; None is without JavaScript.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright)
        if figures:
            draw_figure(browser, html, name)
            faults = []
        elif setting is None:
            faults = [*faults_without_script(browser, html, name)]
        else:
            faults = [*faults_of(browser, html, name, setting, pictures)]
        browser.close()
        return faults


def main(arguments: list[str] | None = None) -> int:
    """Check the pages, as many at once as there are cores; return 1 for faults."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--html", type=Path, default=HERE / "_build" / "html")
    parser.add_argument("--only", choices=sorted(CHECKS), metavar="NAME")
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    parser.add_argument("--figures", action="store_true", help="draw them again")
    options = parser.parse_args(arguments)
    if reason := why_no_browser():
        print(f"explorables not checked: {reason}")
        return 0
    html = options.html.resolve()  # a relative path has no file: address
    if not (html / "index.html").is_file():
        parser.error(f"argument --html: expected a built site, got {options.html}")
    names = [options.only] if options.only else [*CHECKS]
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    # Each page in each setting is a job: in this order no long one is left for the end.
    settings = [None] if options.figures else [*range(len(SETTINGS)), None]
    jobs = [(name, setting) for name in reversed(names) for setting in settings]
    with ProcessPoolExecutor(os.cpu_count() or 1, get_context("spawn")) as pool:
        others = options.pictures, options.figures
        results = [pool.submit(check, html, *job, *others) for job in jobs]
        for result in results:
            for fault in result.result():
                count += 1
                print(fault, flush=True)
    print(f"{len(names)} explorables, {count} faults")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
