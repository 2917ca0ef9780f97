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
