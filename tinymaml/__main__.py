"""The examples as commands: `python -m tinymaml sinusoid --fast`.

`python -m tinymaml` lists them. An installed package has their folder inside, a clone
has it beside the package.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path

PROGRAM = "python -m tinymaml"
HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "examples"
FOLDER = INSTALLED if INSTALLED.is_dir() else HERE.parent / "examples"


def main() -> int:
    """Run the example that is named first; return the exit status."""
    texts = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
    commands = {
        name.replace("_", "-"): text.partition("\n")[0].strip('"')
        for name, text in sorted(texts.items())
        if "\nif __name__" in text  # the other files are imported by these
    }
    name, *options = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {PROGRAM} NAME [--help] [OPTION ...]\n")
        print("\n".join(f"  {key:16}{text}" for key, text in commands.items()))
        return 0
    if name not in commands:
        known = ", ".join(commands)
        print(f"{PROGRAM}: error: expected one of {known}, got {name}", file=sys.stderr)
        return 2
    sys.argv = [f"{PROGRAM} {name}", *options]  # its --help and errors show this
    sys.path.insert(0, str(FOLDER))  # examples import their neighbours
    module = name.replace("-", "_")
    if "parse" not in texts[module]:  # no options: --help shows its docstring
        doc = texts[module].split('"""')[1]
        import_module("shared").plain_parser(doc).parse_args(options)
    runpy.run_module(module, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
