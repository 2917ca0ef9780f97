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
import sys
from collections.abc import Callable, Iterator
from math import cos, log10, sin
from pathlib import Path
from typing import Any

from check_site import find_browser, why_no_browser

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "_static" / "figures"
DESK, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
# (window, colour scheme, reduced motion): what a page is used in.
SETTINGS = (
    (DESK, "light", "no-preference"),
    (DESK, "dark", "reduce"),
    (PHONE, "light", "reduce"),
)
Check = Callable[[Any], None]


# --- what every check is made of ------------------------------------------------------


def drag(page: Any, handle: Any, across: float, down: float) -> None:
    """Move a handle with the mouse by some pixels."""
    # To the middle: at the top it may lie under the header of a phone.
    handle.evaluate("node => node.scrollIntoView({ block: 'center' })")
    box = None
    while box != handle.bounding_box():  # until the page has scrolled
        box = handle.bounding_box()
        page.wait_for_timeout(50)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across / 2, y + down / 2)
    page.mouse.move(x + across, y + down)
    page.mouse.up()


def handle(page: Any, label: str) -> Any:
    """Return the handle of a name."""
    return page.get_by_role("slider", name=label)


def expect(fact: bool, claim: str) -> None:
    """Raise AssertionError with the claim unless it is a fact."""
    if not fact:
        raise AssertionError(claim)


# --- one function for each page -------------------------------------------------------


def check_walk_back(page: Any) -> None:
    """Drag the start, step back through the inner loop, change J and alpha."""


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
    drag(page, first, 30, -60)
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
    touch = page.evaluate("navigator.maxTouchPoints") > 0
    place = {"x": 0.92 * ground.bounding_box()["width"], "y": 20}
    (ground.tap if touch else ground.click)(position=place)
    expect(points.count() == 6, "a tap adds a point")
    handle(page, "Point 6").focus()
    page.keyboard.press("Delete")
    expect(points.count() == 5, "the key Delete removes it")
    for _ in range(5):
        press(page, "Add a point")
    full = page.get_by_role("button", name="Add a point")
    expect(points.count() == 10 and full.is_disabled(), "there is room for ten")
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
    page.wait_for_function(
        "Number(document.querySelector('.x-readout output').textContent) >= 400"
    )
    press(page, "Stop")
    expect(float(loss.inner_text()) < 3, f"the loss fell to {loss.inner_text()} only")
    said = stage.get_by_text("the loss fell from").inner_text()
    start, end = (float(n.strip(".")) for n in said.split("from")[1].split(" to "))
    expect(end < 0.6 * start, f"the loss after the inner step falls: {said}")
    stopped = count.inner_text()
    errors = on_wave()
    expect("yours" in errors and lines.count() >= 6, "a fifth start is drawn")
    expect(errors["yours"] < errors["random"], f"it is better than random: {errors}")
    page.wait_for_timeout(300)
    expect(count.inner_text() == stopped, "training has stopped")


def check_five_characters(page: Any) -> None:
    """Draw, take samples, take the inner step."""


def check_find_the_goal(page: Any) -> None:
    """Place a goal, adapt."""


CHECKS: dict[str, Check] = {
    "walk-back": check_walk_back,
    "four-starts": check_four_starts,
    "five-characters": check_five_characters,
    "find-the-goal": check_find_the_goal,
}


# --- running them ---------------------------------------------------------------------


def faults_of(
    browser: Any, html: Path, name: str, pictures: Path | None
) -> Iterator[str]:
    """Yield what is wrong with one page in each of the settings."""
    address = (html / "explorables" / f"{name}.html").as_uri()
    for window, scheme, motion in SETTINGS:
        where = f"{name}, {window['width']} pixels, {scheme}, motion {motion}"
        faults: list[str] = []
        phone = window is PHONE
        context = browser.new_context(
            viewport=window, color_scheme=scheme, reduced_motion=motion, has_touch=phone
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error, f=faults: f.append(f"script: {error}"))
        page.on(
            "console",
            lambda message, f=faults: (
                f.append(f"console: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on(
            "request",
            lambda request, f=faults: (
                None
                if request.url.startswith(("file:", "data:", "blob:"))
                else f.append(f"requests {request.url}")
            ),
        )
        page.goto(address, wait_until="load")
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
        yield from (f"{where}: {fault}" for fault in faults)
    context = browser.new_context(java_script_enabled=False, viewport=DESK)
    page = context.new_page()
    page.goto(address)
    if not page.locator(".explorable img").is_visible():
        yield f"{name}, without JavaScript: no figure"
    if not page.locator(".explorable p").last.inner_text().strip():
        yield f"{name}, without JavaScript: no sentence"
    context.close()


def draw_figure(browser: Any, html: Path, name: str) -> None:
    """Draw what stands on a page without JavaScript: the stage after its check."""
    context = browser.new_context(
        viewport={"width": 1000, "height": 900}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto((html / "explorables" / f"{name}.html").as_uri(), wait_until="load")
    page.wait_for_selector(".explorable.is-alive")
    CHECKS[name](page)
    page.locator(".explorable-stage").screenshot(
        path=str(FIGURES / f"explorable-{name}.png")
    )
    context.close()


def main(arguments: list[str] | None = None) -> int:
    """Check the pages; return 1 if there are faults."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--html", type=Path, default=HERE / "_build" / "html")
    parser.add_argument("--only", choices=sorted(CHECKS), metavar="NAME")
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    parser.add_argument("--figures", action="store_true", help="draw them again")
    options = parser.parse_args(arguments)
    if reason := why_no_browser():
        print(f"explorables not checked: {reason}")
        return 0
    from playwright.sync_api import sync_playwright

    names = [options.only] if options.only else [*CHECKS]
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--host-resolver-rules=MAP * ~NOTFOUND",
            ],
        )
        for name in names:
            if options.figures:
                draw_figure(browser, options.html, name)
                continue
            for fault in faults_of(browser, options.html, name, options.pictures):
                count += 1
                print(fault, flush=True)
        browser.close()
    print(f"{len(names)} explorables, {count} faults")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
