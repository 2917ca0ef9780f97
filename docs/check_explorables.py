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
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
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


def check_four_starts(page: Any) -> None:
    """Move points, take steps, meta-train for a while."""


def check_five_characters(page: Any) -> None:
    """Draw, take samples, take the inner step."""

    def shown() -> tuple[str, list[int]]:
        """The sentence, and the numbers of test drawings that are right, in the end."""
        page.wait_for_selector(".x-draw:not([aria-busy])")
        cells = page.locator(".x-draw .x-table td:last-child").all_inner_texts()
        right = [int(text.split("→")[1].split("of")[0]) for text in cells]
        return page.locator(".x-draw .x-status").inner_text(), right

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()

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
    press("Clear character 2")
    expect("blank" in shown()[0], f"with a blank character: {shown()[0]}")
    plus(1)
    press("Clear the query")
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
    # Another one, somewhere else; one stroke less; and by the program.
    page.keyboard.press("Delete")
    plus(5, across=0.05)
    expect("taken for 2" in shown()[0], f"a plus on the right: {shown()[0]}")
    press("Undo a stroke of the query")
    expect("1 stroke," in query.get_attribute("aria-label"), "a stroke is undone")
    press("The program draws the query")
    press("Draw by another hand character 2")
    expect("taken for 2" in shown()[0], f"by the program: {shown()[0]}")
    press("Five new samples")
    expect(shown()[1][0] >= 36, f"with new samples: {shown()}")
    choose("Mean and variance from", "batch of five queries")


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
    from PIL import Image  # only the figures want it, and only here

    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto((html / "explorables" / f"{name}.html").as_uri(), wait_until="load")
    page.wait_for_selector(".explorable.is-alive")
    page.add_style_tag(content=".back-to-top { display: none !important; }")
    CHECKS[name](page)
    file = FIGURES / f"explorable-{name}.png"
    page.locator(".explorable-stage").screenshot(path=str(file))
    context.close()
    # A palette takes a third of the bytes. This method keeps the colours of thin lines.
    palette = (
        Image.open(file)
        .convert("RGB")
        .quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    palette.save(file, optimize=True)


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
