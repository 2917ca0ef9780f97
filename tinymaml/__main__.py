"""The examples as commands: `python -m tinymaml sinusoid --fast`.

`python -m tinymaml` lists them. An installed package has their folder inside, a clone
has it beside the package. `commands.py` in this folder does the rest.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACES = HERE / "examples", HERE.parent / "examples"

if __name__ == "__main__":
    folder = next(place for place in PLACES if place.is_dir())
    sys.path.insert(0, str(folder))  # examples import their neighbours
    runpy.run_module("commands", run_name="__main__")
