"""Check the built site: links, anchors, pictures, and every page in a browser.

From the root of a clone, after the build:

    python docs/check_site.py                          # everything, about a minute
    python docs/check_site.py --only "tutorial/*"      # some pages
    python docs/check_site.py --only faq --pictures .  # and pictures of them
    python docs/check_site.py --no-browser             # what needs none, in seconds

In the files: every link inside the site leads to a page and an anchor that exist; no
page loads a script, style, font or picture from elsewhere; every picture has a text and
every table a caption; every figure with a name is there; no markup is shown.

In the browser, with no network: nothing is requested from outside, no script complains;
at three widths no code, table or formula is cut; light, dark and on a phone no text is
smaller than 12 pixels or has a contrast below 4.5 (large text: 3); and the search finds
what people type. The browser is Chromium, driven by Playwright; without either
this part is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

HERE = Path(__file__).resolve().parent
SITE = "http://site.invalid/"  # for joining addresses; .invalid is nobody's name
WIDTHS = (1280, 1440, 390)
SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOADING = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}
LOADED_LINKS = {"stylesheet", "icon", "shortcut icon", "preload", "modulepreload"}
CSS_ADDRESS = re.compile(r"(?:url\(|@import\s+(?=[\"']))\s*[\"']?([^\"')]+)")
CODE = {"code", "pre", "script", "style"}
NAMED_FIGURE = re.compile(r"^\s*:?name: (fig-[\w-]+)$", re.MULTILINE)
MARKUP = re.compile(r"`{3,}|:{3,}\{|\{[a-z:]+\}`|\$\$|\\(?:frac|theta|begin)\b.*")
TWO_FRAMES = "new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))"
# What people type, and the page that the search must then name.
SEARCHES = {
    "second order": "derivations/hessian-vector-product",
    "create_graph": "derivations/hessian-vector-product",
    "FOMAML": "paper/section-2-2",
    "higher": "faq",
    "higher-order gradients": "derivations/hessian-vector-product",
    "Hessian vector product": "derivations/hessian-vector-product",
    "batch norm": "faq",
    "resume": "faq",
    "own data": "faq",
    "own model": "faq",
    "episodes": "reference/tasks",
    "perturbation confusion": "annotated/derivatives",
    "detach": "annotated/heart",
    "few-shot": "paper/section-5-2",
    "omniglot": "results/omniglot",
    "batch normalisation": "paper/section-5-2",
    "TRPO": "derivations/fisher-vector-product",
}


@dataclass
class Page:
    """What a page links to and holds."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    no_text: list[str] = field(default_factory=list)
    untitled_tables: int = 0
    markup: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Reads one page."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.in_code = 0
        self.table: list[bool] = []  # for each open table: whether it has a caption

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, loads or is called."""
        values = {name: value or "" for name, value in attrs}
        page = self.page
        page.anchors.update({values.get("id", ""), values.get("name", "")} - {""})
        if tag == "a" and values.get("href"):
            page.links.append(values["href"])
        page.loads += [
            value for name, value in values.items() if (tag, name) in LOADING and value
        ]
        if tag == "link" and values.get("rel", "").lower() in LOADED_LINKS:
            page.loads.append(values.get("href", ""))
        if tag == "img" and not values.get("alt", "").strip():
            page.no_text.append(values.get("src", ""))
        self.in_code += tag in CODE
        if tag == "table":
            # Sphinx's own tables (the index) are found by their columns.
            self.table.append("docutils" not in values.get("class", ""))
        if tag == "caption" and self.table:
            self.table[-1] = True

    def handle_endtag(self, tag: str) -> None:
        """Note a table without a caption."""
        self.in_code -= tag in CODE
        if tag == "table" and self.table:
            self.page.untitled_tables += not self.table.pop()

    def handle_data(self, data: str) -> None:
        """Note markup that was to be something else: a box, a role, a formula."""
        if not self.in_code and (found := MARKUP.search(data)):
            self.page.markup.append(found[0])


def read_page(path: Path) -> Page:
    """Return what a page links to and holds."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def is_outside(address: str) -> bool:
    """Tell whether an address is of another site; data: is part of the page."""
    parts = urlsplit(address)
    return parts.scheme not in {"", "data"} or bool(parts.netloc)


def link_faults(html: Path, root: str = "/") -> Iterator[str]:
    """Yield what is wrong in the files of a site that will be served below `root`."""
    pages = {
        path.relative_to(html).as_posix(): read_page(path)
        for path in sorted(html.rglob("*.html"))
        if "_static" not in path.relative_to(html).parts
    }
    for name, page in pages.items():
        for address in page.loads:
            if is_outside(address):
                yield f"{name}: loads {address}"
        for address in page.no_text:
            yield f"{name}: the picture {address} has no alternative text"
        for text in page.markup:
            yield f"{name}: shows its markup: {text}"
        if page.untitled_tables:
            yield f"{name}: tables without a caption: {page.untitled_tables}"
        inside = [link for link in page.links if not is_outside(link)]
        for address in {*inside, *(a for a in page.loads if not is_outside(a))}:
            if address.startswith("data:"):
                continue
            target = urlsplit(urljoin(SITE + root.lstrip("/") + quote(name), address))
            path = unquote(target.path).removeprefix(root) or "index.html"
            path = path + "index.html" if path.endswith("/") else path
            if path not in pages and not (html / path).is_file():
                yield f"{name}: {address} leads to no file"
            elif target.fragment and path in pages:
                if unquote(target.fragment) not in pages[path].anchors:
                    yield f"{name}: {address} leads to no anchor"
    for path in sorted(html.rglob("*.css")):
        for address in CSS_ADDRESS.findall(path.read_text(encoding="utf-8")):
            if is_outside(address):
                yield f"{path.relative_to(html)}: loads {address}"


def missing_figures(html: Path, sources: Path = HERE) -> Iterator[str]:
    """Yield the figures that a source names and its page lacks: no cell drew them."""
    for source in sorted(sources.rglob("*.md")):
        page = html / source.relative_to(sources).with_suffix(".html")
        if page.is_file():
            anchors = read_page(page).anchors
            name = page.relative_to(html).as_posix()
            for figure in NAMED_FIGURE.findall(source.read_text(encoding="utf-8")):
                if figure not in anchors:
                    yield f"{name}: the figure {figure} is missing"


@cache
def find_browser() -> str | None:
    """Return the path of a Chromium, from TINYMAML_BROWSER or the PATH."""
    named = os.environ.get("TINYMAML_BROWSER")
    found = [named] if named else [shutil.which(name) for name in BROWSERS]
    return next((path for path in found if path), None)


def why_no_browser() -> str:
    """Return why pages cannot be opened here, or "" if they can."""
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return 'Playwright is not installed (pip install -e ".[docs]")'
    return "" if find_browser() else f"none of {', '.join(BROWSERS)} is on the PATH"


# Runs in a page: the expression has the functions `layout` and `colours`, each of which
# returns a list of faults.
MEASURES = (HERE / "check_site.js").read_text(encoding="utf-8").strip()


class Files(SimpleHTTPRequestHandler):
    """Serves a folder without a word; the browser may keep what it has."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file, unless the browser has gone on before its end."""
        with suppress(ConnectionError):
            super().copyfile(source, outputfile)


def launch(playwright: Any, *exceptions: str) -> Any:
    """Chromium, which reaches no host but those of the exceptions."""
    rules = ", ".join(["MAP * ~NOTFOUND", *exceptions])
    return playwright.chromium.launch(
        executable_path=find_browser(),
        args=["--no-sandbox", "--disable-gpu", f"--host-resolver-rules={rules}"],
    )


class Browser:
    """Chromium, which can reach one folder of files and nothing else."""

    def __init__(self, html: Path, playwright: Any) -> None:
        handler = functools.partial(Files, directory=str(html))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.site = f"http://127.0.0.1:{self.server.server_port}/"
        self.faults: list[str] = []
        self.browser = launch(playwright, "EXCLUDE 127.0.0.1")
        self.page = self.browser.new_context().new_page()
        self.page.on("request", self.see)
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("console", self.hear)

    def close(self) -> None:
        """End the browser and the server."""
        self.browser.close()
        self.server.shutdown()
        self.server.server_close()

    def see(self, request: Any) -> None:
        """Note a request to anywhere else."""
        if not request.url.startswith((self.site, "data:", "blob:")):
            self.faults.append(f"requests {request.url}")

    def hear(self, message: Any) -> None:
        """Note an error that the page writes to the console."""
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def open(self, name: str) -> None:
        """Open a page of the site, at the first width."""
        self.faults = []
        self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        self.page.goto(self.site + name, wait_until="load")
        self.page.evaluate("document.fonts.ready.then(() => true)")

    def check(self, name: str, pictures: Path | None = None) -> Iterator[str]:
        """Open one page at all widths and in both schemes; yield its faults."""
        self.page.emulate_media(color_scheme=SCHEMES[0])
        self.open(quote(name))
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": 900})
            # Explorables draw anew for the new width, in the next frame.
            self.page.evaluate(TWO_FRAMES)
            for fault in self.page.evaluate(f"{MEASURES}.layout()"):
                yield f"{name} at {width}: {fault}"
            if width == WIDTHS[-1]:  # some text is for phones only
                for fault in self.page.evaluate(f"{MEASURES}.colours()"):
                    yield f"{name} at {width}: {fault}"
            if pictures:
                stem = name.removesuffix(".html").replace("/", "-")
                file = pictures / f"{stem}-{width}.png"
                self.page.screenshot(path=str(file), full_page=True)
        self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        for scheme in SCHEMES:
            self.page.emulate_media(color_scheme=scheme)
            for fault in self.page.evaluate(f"{MEASURES}.colours()"):
                yield f"{name}, {scheme}: {fault}"
        yield from (f"{name}: {fault}" for fault in self.faults)

    def search(self, words: str) -> list[str]:
        """Return the pages that the site's search names, best first."""
        self.open(f"search.html?q={quote(words)}")
        self.page.wait_for_function(
            "!document.querySelector('#search-progress, .search-summary') ||"
            " /found|did not match/.test("
            "document.querySelector('#search-results').textContent)",
            timeout=20_000,
        )
        links = "#search-results ul.search li a"
        found = self.page.eval_on_selector_all(links, "a => a.map(b => b.href)")
        return [unquote(urlsplit(link).path).lstrip("/") for link in found]


def browser_faults(
    html: Path, names: list[str], pictures: Path | None, searches: dict[str, str]
) -> list[str]:
    """Return what is wrong with pages as a browser shows them."""
    from playwright.sync_api import sync_playwright

    faults = []
    with sync_playwright() as playwright:
        browser = Browser(html, playwright)
        for name in names:
            faults += browser.check(name, pictures)
        for words, wanted in searches.items():
            found = browser.search(words)
            if f"{wanted}.html" not in found[:10]:
                faults.append(f"search for {words!r}: {wanted} is not in {found[:10]}")
        browser.close()
    return faults


def in_processes(
    html: Path, names: list[str], pictures: Path | None, searches: dict[str, str]
) -> Iterator[str]:
    """Yield the faults that a browser finds, the pages shared among processes."""
    count = min(os.cpu_count() or 1, 4, 1 + len(names) // 8)
    jobs = [names[first::count] for first in range(count)]
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        results = [
            pool.submit(browser_faults, html, job, pictures, {} if first else searches)
            for first, job in enumerate(jobs)
        ]
        for result in results:
            yield from result.result()


def main(arguments: list[str] | None = None) -> int:
    """Check a site; return 1 if it has faults."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--html", type=Path, default=HERE / "_build" / "html")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="tutorial/*")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="one for each width"
    )
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument(
        "--root", default="/", help="where the site will be: /tinymaml/"
    )
    options = parser.parse_args(arguments)
    if not (options.html / "index.html").is_file():
        parser.error(f"{options.html} holds no built site")
    names = [
        name
        for path in sorted(options.html.rglob("*.html"))
        if "_static" not in path.relative_to(options.html).parts
        if (name := path.relative_to(options.html).as_posix()) != "404.html"
        or options.root == "/"  # its links begin at the root of the site
        if fnmatch.fnmatch(name.removesuffix(".html"), options.only)
    ]
    if not names:
        parser.error(f"argument --only: no page is named so, got {options.only!r}")
    count = 0
    in_files = chain(
        link_faults(options.html, options.root), missing_figures(options.html)
    )
    for fault in in_files:
        if fnmatch.fnmatch(fault.split(":")[0].removesuffix(".html"), options.only):
            count += 1
            print(fault)
    reason = "--no-browser" if options.no_browser else why_no_browser()
    if reason:
        print(f"browser checks skipped: {reason}")
    else:
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
        searches = SEARCHES if options.only == "*" else {}
        for fault in in_processes(options.html, names, options.pictures, searches):
            count += 1
            print(fault, flush=True)
    print(f"{len(names)} pages, {count} faults")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
