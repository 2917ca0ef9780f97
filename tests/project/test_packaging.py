"""The sdist has all that a clone has; the wheel has the package and the examples.

.ci/versions installs both and runs tests there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from tests.support.running import run_python
from tests.support.source_tree import ROOT

FOLDERS = (".ci", "benchmarks", "docs", "examples", "tests", "tinymaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # each build writes its own sys.argv
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


def files_of_the_project() -> list[str]:
    """What a clone has; without git, as in an sdist, what is in its folders."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        return sorted(name for name in {*listed} if (ROOT / name).is_file())
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in (*inside, *ROOT.iterdir())
        if path.is_file()
        and not {"__pycache__", "_build", "PKG-INFO", "setup.cfg"} & {*path.parts}
    )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and a wheel, built from a copy of the project."""
    pytest.importorskip("setuptools", minversion="77.0.3")
    folder = tmp_path_factory.mktemp("distributions")
    for name in files_of_the_project():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "copy" / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=folder / "copy",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def wheel_names(distributions: Path) -> set[str]:
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        return {*wheel.namelist()}


def metadata_of(distributions: Path) -> Message:
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def test_the_sdist_has_all_that_a_clone_has(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        files = [member for member in sdist.getmembers() if member.isfile()]
        names = {member.name.partition("/")[2] for member in files}
    project = {*files_of_the_project()}
    assert {"CHANGELOG.md", ".ci/run", "tests/support/running.py"} < project
    assert project - names == set()
    extra = {name for name in names - project if "egg-info" not in name}
    assert extra <= {"PKG-INFO", "setup.cfg"}


def test_the_wheel_has_the_package_and_the_examples(distributions: Path) -> None:
    project = files_of_the_project()
    package = {name for name in project if name.startswith("tinymaml/")}
    examples = {f"tinymaml/{name}" for name in project if name.startswith("examples/")}
    names = {name for name in wheel_names(distributions) if ".dist-info/" not in name}
    assert names == package | examples


def test_the_readme_has_no_relative_link_on_a_package_index(
    distributions: Path,
) -> None:
    metadata = metadata_of(distributions)
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links and all(link.startswith("https://") for link in links)
    root = PROJECT["urls"]["Repository"]
    assert f"{root}/raw/main/docs/_static/first_steps.png" in links
    assert f"{root}/blob/main/tinymaml/maml.py" in links
    # Nothing else changes.
    assert re.sub(rf"\({re.escape(root)}/(raw|blob)/main/", "(", page).strip() == (
        (ROOT / "README.md").read_text("utf-8").strip()
    )


def test_the_metadata_say_where_things_are(distributions: Path) -> None:
    metadata = metadata_of(distributions)
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert urls == PROJECT["urls"]
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    versions = [f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13)]
    assert {*versions} <= {*metadata.get_all("Classifier", [])}
    assert metadata["Requires-Python"] == ">=3.11"


def test_only_the_extras_need_more_than_the_sinusoid_example() -> None:
    names = {line.partition(">")[0] for line in PROJECT["dependencies"]}
    assert names == {"numpy", "numba", "tqdm", "matplotlib", "platformdirs"}
    blocked = ("PIL", "pooch", "scipy", "matplotlib", "numba")
    program = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
import tinymaml
for module in "tinymaml.tasks.omniglot", "tinymaml.tasks.miniimagenet":
    try:
        __import__(module)
    except ImportError as error:
        print(error)
"""
    out, _ = run_python(program)
    message = 'Pillow is missing: pip install "tinymaml[images]"'
    assert out.splitlines() == [message, message]


def test_without_pooch_a_download_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tinymaml.tasks import omniglot

    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError) as caught:
        omniglot.fetch(tmp_path / "images_background.zip")
    assert str(caught.value) == 'pooch is missing: pip install "tinymaml[images]"'
