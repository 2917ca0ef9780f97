"""The examples as commands: what `python -m tinymaml sinusoid --fast` runs.

`python -m tinymaml` lists them: every file of this folder that can be started.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path

PROGRAM = "python -m tinymaml"
HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the example that is named first; return the exit status."""
    texts = {path.stem: path.read_text("utf-8") for path in HERE.glob("*.py")}
    commands = {
        name.replace("_", "-"): text.partition("\n")[0].strip('"')
        for name, text in sorted(texts.items())
        # The other files are imported by these, and this one is no example.
        if "\nif __name__" in text and name != "commands"
    }
    name, *options = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {PROGRAM} NAME [--help] [OPTION ...]\n")
        print("\n".join(f"  {key:16}{text}" for key, text in commands.items()))
    elif name in commands:
        sys.argv = [f"{PROGRAM} {name}", *options]  # its --help and errors show this
        text = texts[module := name.replace("-", "_")]
        if "parse" not in text:  # no options: --help shows its docstring
            parser = import_module("shared").plain_parser(text.split('"""')[1])
            parser.parse_args(options)
        runpy.run_module(module, run_name="__main__")
    else:
        known = ", ".join(commands)
        print(f"{PROGRAM}: error: expected one of {known}, got {name}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
