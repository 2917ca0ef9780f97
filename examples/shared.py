"""What the examples share: options, a folder to write to, intervals, tables, figures.

This file keeps the examples short. It reads their options, with one-line errors; checks
before training that their files can be written, that no other run writes them and that
no earlier run is lost; continues an earlier run; ends in one line, whatever ends it;
and writes results and figures completely or not at all.

Left out: settings files, searches over settings, and trackers of experiments.
"""

import argparse
import atexit
import codecs
import io
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from stages import CHECKPOINT, LOG, Stages
from tinymaml.backends import BACKENDS, Backend, get_backend
from tinymaml.files import check_plain, check_writable, write_atomically
from tinymaml.training.checkpoint import CheckpointError, load_checkpoint
from tinymaml.training.distributed import DistributedBackend, launched
from tinymaml.training.steps import OneProcess, RankError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INITIALISATION = "initialisation.npz"  # what others can start from: tinymaml.pretrained
STARTS = ("exact", "first-order", "pretrained")  # the trainings that write one


# --- options --------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop."""
        text = f"{self.prog}: error: {' '.join(message.split())}\n"
        # Where MPI is missing, each process says so.
        with suppress(ImportError):
            text = "" if launched().rank > 0 else text
        self.exit(2, text)


def plain_parser(doc: str) -> Parser:
    """A parser without options; `doc` is its description."""
    return Parser(
        prog=os.path.basename(sys.argv[0]),
        description=as_started(doc),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def experiment_parser(
    doc: str,
    out: str,
    iterations: int | str,
    fast: int,
    fast_changes: str = "",
    seeds: Sequence[int] = (),
) -> Parser:
    """A parser with the options of every experiment; `doc` is its description.

    iterations: the default, or words for it if it depends on other options; then
    `read_options` leaves None. fast: the number of iterations with --fast.
    fast_changes: what else it changes. seeds: the default of --seeds, for an experiment
    with several of them; `options.seed` is a list then.
    """
    known = isinstance(iterations, int)
    parser = plain_parser(doc)
    add = parser.add_argument
    add(
        "--iterations",
        type=whole_number(0),
        metavar="N",
        help=f"number of outer steps of each training (default: "
        f"{format(iterations, ',') if known else iterations})",
    )
    add(
        "--fast",
        action="store_true",
        help=f"a short run to try the program: {fast:,} iterations{fast_changes}; its "
        "numbers are worse than those of a full run",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the computations (default: auto, a GPU if there is one, else "
        "numba where it is installed)",
    )
    add(
        "--threads",
        type=whole_number(1, most=2**16),
        metavar="N",
        help="threads of the numba backend, and of MuJoCo where it is used; only times "
        "depend on it, and results at equal time (default: cores, shared by the "
        "processes of a node)",
    )
    add(
        "--exact",
        action="store_true",
        help="where mpirun starts several processes: the bits of one process (default: "
        "faster, the same up to rounding)",
    )
    several: dict[str, Any] = {"dest": "seed", "nargs": "+"} if seeds else {}
    add(
        "--seeds" if seeds else "--seed",
        type=whole_number(0, most=2**64),
        default=list(seeds) or 0,
        metavar="N",
        help="seed of the initial weights and training tasks; test tasks do not depend "
        f"on it (default: {' '.join(map(str, seeds or [0]))})",
        **several,
    )
    add(
        "--out",
        type=file_path,
        default=Path(out),
        metavar="DIR",
        help="folder for all files of this run, made if missing (default: %(default)s)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace an earlier run in the folder of --out",
    )
    parser.set_defaults(
        default_iterations=iterations if known else None, fast_iterations=fast
    )
    return parser


def add_resume(parser: Parser, settings: str, unless: str = "") -> None:
    """Add --resume; `settings` are the options in which both runs must agree.

    unless: when --iterations must be the same, too.
    """
    parser.add_argument(
        "--resume",
        type=file_path,
        metavar="DIR",
        help="folder of an earlier run to continue from, its --out and perhaps this "
        f"one's too, with the same {settings}; --iterations may be larger{unless}",
    )


def add_problem(
    parser: Parser, option: str, iterations: Mapping[str, tuple[int, int]], words: str
) -> None:
    """Add an option that chooses the problem, and with it iterations and folder.

    iterations: by name of a problem, the numbers of a full run and with --fast. The
    first is the default, and the default of --out is its folder; each other problem has
    a folder beside it, with its name at the end, as the help says. words: its start.
    """
    first, out = next(iter(iterations)), parser.get_default("out")

    class Choose(argparse.Action):
        def __call__(
            self, parser: Any, options: Any, problem: Any, option: Any = None
        ) -> None:
            setattr(options, self.dest, problem)
            options.default_iterations, options.fast_iterations = iterations[problem]
            if problem != first and options.out is out:  # `is`: --out may give the same
                options.out = out.with_name(f"{out.name}_{problem}")

    parser.add_argument(
        option,
        choices=tuple(iterations),
        default=first,
        action=Choose,
        help=f"{words}; the default of --out ends in its name, if it is not the first",
    )


def add_images(
    parser: Parser,
    data: str = "Omniglot",
    otherwise: str = "",
    standin: str = "characters drawn by a program instead of Omniglot",
) -> None:
    """Add --data and --standin, of which a run takes one.

    The rest are words of the help: what the folder holds, what is done without it, and
    what takes its place.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--data",
        type=file_path,
        metavar="DIR",
        help=f"folder with {data} (default: $TINYMAML_DATA, else the user's "
        f"cache{otherwise})",
    )
    group.add_argument("--standin", action="store_true", help=f"use {standin}")


def refuse_images(parser: Parser, options: argparse.Namespace, option: str) -> None:
    """End with an error if images are given for a problem that has none.

    option: the one that chose the problem, such as "--task".
    """
    for name in ("data", "standin"):
        if getattr(options, name):
            parser.error(
                f"argument --{name}: expected {option} omniglot, got {option} sinusoid"
            )


def file_path(text: str) -> Path:
    """An argparse type: a path; ~ is the home folder, which shells leave in --out=~."""
    if not text:  # a shell variable that is not set; Path("") is the current folder
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(os.path.expanduser(text))


def whole_number(least: int, most: int = 10**12) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`, and at most `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            limit = f"least {least}" if number < least else f"most {most:,}"
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at {limit}, got {text!r}"
            )
        return number

    return parse


def positive_number(text: str) -> float:
    """An argparse type: a number above 0 that float32 has in full precision."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1.2e-38 <= number <= 3.4e38:
        expected = "a positive number"
        if 0 < number < math.inf:
            expected += " from 1.2e-38 to 3.4e38, as float32 has them"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return number


def read_options(
    parser: Parser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, Backend]:
    """The options, with `iterations` filled in, and the backend they ask for.

    Where mpirun has started several processes, the backend spreads tasks over them. All
    run the whole program, but only the first writes into --out and on the terminal: the
    others have a folder of their own, which they remove.
    """
    options = parser.parse_args(arguments)
    try:
        ranks = launched()
    except ImportError as error:
        parser.error(f"mpirun: {error}")
    if ranks.rank > 0:
        scratch = TemporaryDirectory()
        atexit.register(scratch.cleanup)
        options.out = Path(scratch.name)
    if options.iterations is None:
        options.iterations = (
            options.fast_iterations if options.fast else options.default_iterations
        )
    earlier_run(parser, options)
    try:
        options.threads = options.threads or ranks.threads()
        backend: Any = get_backend(options.backend, options.threads)
        if ranks.size > 1:
            ranks.exact = options.exact
            backend = DistributedBackend(backend, ranks)
        return options, backend
    except (ImportError, ValueError) as error:
        parser.error(f"argument --backend: {error}")


def prepare_folder(folder: Path, files: Iterable[str]) -> None:
    """Make the folder if it is missing, and check that these files can be written.

    files: paths relative to the folder; their folders are made as well. Raises OSError
    after removing all folders that were made here.
    """
    paths = [folder / name for name in files]
    parents = {folder, *(path.parent for path in paths)}
    parents |= {ancestor for parent in parents for ancestor in parent.parents}
    missing = [parent for parent in parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_writable(path)
    except OSError:
        for parent in sorted(missing, reverse=True):  # the innermost first
            if parent.is_dir():
                parent.rmdir()
        raise


def earlier_run(
    parser: Parser, options: argparse.Namespace, files: Iterable[str] = ()
) -> list[Path]:
    """Files of an earlier run in `options.out` that this run replaces.

    There is one if there are checkpoints, an initialisation or results.json; logs and
    initialisations beside them are its files, too. If there is one, the program ends
    with a one-line error, unless --overwrite is given. A run that continues this very
    folder replaces nothing. files: what this run will write. In folders where it writes
    nothing, checkpoints of the user's own trainings stay, and what is beside them.
    """
    resume = getattr(options, "resume", None)
    if resume is not None:
        folder = resume if resume.is_dir() else resume.parent
        if os.path.realpath(folder) == os.path.realpath(options.out):
            return []
    patterns = ("results.json", CHECKPOINT, f"*/{CHECKPOINT}", INITIALISATION)
    found = [path for pattern in patterns for path in options.out.glob(pattern)]
    written = {(options.out / file).parent for file in files} - {options.out}
    found = [
        path
        for path in found
        if path.is_file() and (path.parent in written or not is_foreign(path))
    ]
    if not found:
        return []
    if not options.overwrite:
        ways = ["--overwrite replaces it"]
        if hasattr(options, "resume") and any(p.name == CHECKPOINT for p in found):
            ways.insert(0, f"--resume {for_a_shell(options.out)} continues it")
        parser.error(
            f"argument --out: {options.out} holds an earlier run "
            f"({found[0].relative_to(options.out)}); {', '.join(ways)}"
        )
    places = {path.parent for path in found}
    if not is_foreign(options.out / CHECKPOINT):
        places.add(options.out)
    beside = [place / name for place in places for name in (LOG, INITIALISATION)]
    return found + [path for path in beside if path.is_file()]


def is_foreign(path: Path) -> bool:
    """Whether this is a whole checkpoint, but of no experiment of these programs."""
    if path.name != CHECKPOINT:
        return False
    try:
        config = load_checkpoint(path).config
    except (OSError, ValueError):
        return False
    return not {"experiment", "trainings"} & config.keys()  # the second: older ones


def lost_results(options: argparse.Namespace) -> list[str]:
    """What results.json in the folder has been tested on, and this run will not be."""
    file = options.out / "results.json"
    try:
        earlier = read_json(file, "results", lambda results: list(results["tested"]))
    except (OSError, ValueError):
        return []  # there is none, or an older one, which does not say it
    return [name for name in earlier if name not in options.tested]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other runs out of it.

    The lock is on the folder itself and ends with this process, however it ends; its
    forked children have no part in it. Folders that were made here are removed after
    an error if they are still empty. On a file system without locks this only makes the
    folder. Raises OSError if it cannot be made, or another run holds the lock.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    LOCKS.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another run is writing into this folder"
            raise OSError(error.errno, message, str(folder)) from None
        except OSError:
            pass
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit):
            for path in missing:  # the innermost first
                with suppress(OSError):
                    path.rmdir()
            raise
    finally:
        if descriptor in LOCKS:
            LOCKS.remove(descriptor)
            os.close(descriptor)


def _close_locks() -> None:
    """In a forked child: it would keep the lock when its parent has been killed."""
    while LOCKS:
        os.close(LOCKS.pop())


LOCKS: set[int] = set()  # descriptors of locked folders
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def open_folder(
    parser: Parser,
    options: argparse.Namespace,
    files: Iterable[str],
    check: Callable[[], None] = lambda: None,
) -> ExitStack:
    """`options.out`, for this run alone until the stack closes; `files` can be written.

    If it cannot be had, the program ends with a one-line error. With --overwrite the
    files of an earlier run are removed. check: called when no other run can change the
    folder and nothing has been changed yet.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(options.out))
            files = list(files)
            earlier = earlier_run(parser, options, files)
            check()
            prepare_folder(options.out, files)
            if earlier:  # its figures, too, which have the names of this run's
                for path in {*earlier, *(options.out / file for file in files)}:
                    path.unlink(missing_ok=True)
        except OSError as error:
            parser.error(f"argument --out: {reason(error)}")
        return stack.pop_all()


@contextmanager
def open_stages(
    parser: Parser,
    options: argparse.Namespace,
    command: str,
    names: Iterable[str],
    config: Mapping[str, Any],
    files: Iterable[str],
    iterations: int | None = None,
    tested: Sequence[str] = (),
) -> Iterator[Stages]:
    """The trainings of this run, resumed if --resume is given, in `options.out`.

    iterations: the most of any training, if it is not `options.iterations`. tested:
    what `write_results` will have results of, if it is not the trainings; a run that
    would drop some of an earlier run's from results.json is refused.

    Before anything is trained, this reads and checks `options.resume`, and checks that
    the trainings' files and `files` can be written into `options.out`. If not, the
    program ends with a one-line error. A KeyboardInterrupt is given a message that says
    how to continue `command`.
    """
    most = options.iterations if iterations is None else iterations
    stages = Stages(options.out, names, config, most)
    options.tested = [*(tested or stages.names)]

    def resume() -> None:
        if options.resume is not None:
            try:
                stages.resume(options.resume)
            except (OSError, ValueError) as error:
                parser.error(f"argument --resume: {reason(error)}")
            lost = lost_results(options)
            if lost and not options.overwrite:
                parser.error(
                    f"argument --resume: {options.out} has results that this run would "
                    f"drop ({', '.join(lost)}); --overwrite drops them"
                )
        # All processes have read it before the first changes the folder.
        launched().agree()

    with open_folder(parser, options, [*stages.files, *files], resume):
        try:
            yield stages
        except KeyboardInterrupt:
            if not any((options.out / n / CHECKPOINT).exists() for n in stages.names):
                raise
            raise KeyboardInterrupt(how_to_continue(command, stages)) from None


def reason(error: Exception) -> str:
    """An error in one line, without error numbers."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        text += "" if error.filename is None else f": {error.filename}"
    return " ".join(text.split())


def run_to_the_end(parser: argparse.ArgumentParser, run: Callable[[], object]) -> int:
    """Run; return the exit status. Whatever stops it says so in one line.

    Of several processes only the first says it. One that fails tells the others, and
    ends them if they do not notice.

    The status is 0; 130 after Ctrl-C or SIGTERM; 141 if the reader of the output has
    gone, as after `| head -1`; 1 after a fault in the run. A checkpoint that does not
    fit ends the program as a wrong option does, with status 2.
    """
    try:
        ranks = launched()
    except ImportError as error:
        parser.error(f"mpirun: {error}")
    status = 1
    try:
        status = _run_to_the_end(parser, run, ranks)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        if status:
            ranks.leave(status)
    return status


def _run_to_the_end(
    parser: argparse.ArgumentParser, run: Callable[[], object], ranks: OneProcess
) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="in ASCII")
    main_thread = threading.current_thread() is threading.main_thread()
    catches = main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if catches:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if ranks.rank > 0:
        sys.stdout = open(os.devnull, "w")
    try:
        with ranks:
            run()
        print(end="", flush=True)
    except KeyboardInterrupt as stop:
        print(f"Stopped. {str(stop) or 'There are no results.'}")
        return 130
    except BrokenPipeError:
        return 141
    except CheckpointError as error:
        parser.error(f"argument --resume: {reason(error)}")
    except (FloatingPointError, OSError, MemoryError, RankError) as error:
        if ranks.rank == 0:
            print(f"{parser.prog}: error: {reason(error)}", file=sys.stderr)
        return 1
    finally:
        if catches:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            print(end="", flush=True)
        except OSError:  # nobody reads it: Python must not try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Characters that the terminal does not have: +- for its sign, ? for others."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join("+-" if c == "±" else "?" for c in missing), error.end


codecs.register_error("in ASCII", _in_ascii)


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command that was given, ready to be pasted into a shell.

    >>> command_line("examples/sinusoid.py", ["--out", "my results"])
    "python examples/sinusoid.py --out 'my results'"
    """
    return as_started(shlex.join(["python", program, *arguments]))


def without(command: str, *options: str, flags: Sequence[str] = ()) -> str:
    """The command without some options and their values, and without some flags."""
    parser = argparse.ArgumentParser(add_help=False)
    for option in options:
        parser.add_argument(option)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    return shlex.join(parser.parse_known_args(shlex.split(command))[1])


def training_command(command: str) -> str:
    """The command without its folders, --overwrite and --resume.

    A run that is resumed ends with the parameters of one that never stopped, so this
    command makes the same ones, whatever interrupted them.

    >>> training_command("python examples/sinusoid.py --seed 1 --resume results/s1")
    'python examples/sinusoid.py --seed 1'
    """
    return without(command, "--out", "--resume", "--data", flags=["--overwrite"])


def as_started(text: str) -> str:
    """The text with its commands as they are in an installed package, if this is one.

    `python -m tinymaml sinusoid` instead of `python examples/sinusoid.py`, if that is
    how this program was started.
    """
    if not sys.argv[0].startswith("python -m tinymaml "):
        return text
    command = re.compile(r"\bpython examples/(\w+)\.py")
    return command.sub(lambda m: f"python -m tinymaml {m[1].replace('_', '-')}", text)


def how_to_continue(command: str, stages: Stages) -> str:
    """What to print after Ctrl-C: the command that resumes this run, from here."""
    started = without(command, "--resume")
    program = next(iter(shlex.split(started)[1:]), "")
    by_name = os.path.basename(program) == os.path.basename(sys.argv[0])
    if program and by_name:  # which another path may have started
        started = started.replace(program, shlex.quote(sys.argv[0]), 1)
    return f"Continue with\n  {started} --resume {for_a_shell(stages.folder)}"


def for_a_shell(path: Path) -> str:
    """A path as it is typed in a command: quoted, and never like an option.

    >>> for_a_shell(Path("my results")), for_a_shell(Path("-2"))
    ("'my results'", './-2')
    """
    name = str(path)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


# --- numbers --------------------------------------------------------------------------


def random_stream(purpose: int, number: int) -> np.random.Generator:
    """Random numbers for one purpose of an experiment, such as its test tasks.

    Streams of different purposes are independent: how many numbers one of them uses
    changes nothing in the others. `number` is the seed, or counts within the purpose.
    """
    return np.random.default_rng([purpose, number])


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of numbers (N,), in float64.

    The half-width is 1.96 standard deviations / sqrt(N), as in the authors' code. If
    there are no numbers, both are NaN.

    >>> mean_and_interval(np.array([1.0, 3.0]))
    (2.0, 1.3859292911256331)
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return math.nan, math.nan
    with np.errstate(all="ignore"):  # the interval of infinite values is NaN
        interval = 1.96 * values.std() / math.sqrt(len(values))
    return float(values.mean()), float(interval)


def shortest_seconds(
    calls: Mapping[Any, Callable[[], object]], rounds: int, backend: Backend
) -> dict[Any, float]:
    """The shortest time of each call, of `rounds`, after one that compiles.

    The calls take turns, so that other programs disturb all of them alike, and the
    shortest time counts, as the least disturbed one. It is the time that the processor
    works, all threads together; on a GPU it is the time until the result is there. Of
    several processes the times of the first count, in all of them.
    """
    on_gpu = backend.name.startswith("cupy")
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = dict.fromkeys(calls, math.inf)
    for turn in range(rounds + 1):
        for name, call in calls.items():
            started = clock()
            call()
            if turn > 0:  # the first call records and compiles
                seconds[name] = min(seconds[name], clock() - started)
    of_first = launched().gather(np.array([[*seconds.values()]]))[0]
    return dict(zip(seconds, of_first.tolist(), strict=True))


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text: the first column to the left, the others to the right.

    >>> print(text_table(["method", "MSE"], [["MAML", "0.35"]]))
    method   MSE
    MAML    0.35
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# --- files ----------------------------------------------------------------------------


def write_results(
    experiment: str,
    command: str,
    options: argparse.Namespace,
    backend: Backend,
    seconds: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """Write `results.json` into `options.out`, as `write_json` does.

    `more` has further facts about the run, which are written before its rows.
    """
    from tinymaml import __version__

    results = {
        "experiment": experiment,
        "command": command,
        "version": __version__,
        "seed": options.seed,
        "iterations": options.iterations,
        "backend": backend.name,
        "tested": getattr(options, "tested", []),
        "seconds": seconds,
        **more,
        "rows": rows,
    }
    write_json(options.out / "results.json", results)


def read_json(file: Path, expected: str, parse: Callable[[Any], Any]) -> Any:
    """parse(contents of a JSON file); a ValueError says what was `expected` instead.

    Raises OSError if it cannot be read.
    """
    try:
        check_plain(file)
        return parse(json.loads(file.read_text(encoding="utf-8")))
    except OSError:
        raise
    except Exception as error:  # any text can be JSON of any other kind
        raise ValueError(
            f"{file}: expected {expected}, got another file "
            f"({type(error).__name__}: {error})"
        ) from None


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write JSON, completely or not at all; NaN and infinity become null."""
    text = json.dumps(finite(results), indent=1, allow_nan=False, ensure_ascii=False)
    with write_atomically(path) as file:
        # A name of a folder may be bytes that are no text.
        file.write(text.encode(errors="backslashreplace") + b"\n")


def four_digits(
    rows: Sequence[Mapping[str, Any]], *names: str
) -> dict[str, list[float]]:
    """Columns of results, as an initialisation's facts have them."""
    return {name: [float(f"{row[name]:.4g}") for row in rows] for name in names}


def finite(value: Any) -> Any:
    """JSON values with null in the place of NaN and infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, completely or not at all."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=150)
    with write_atomically(path) as file:
        file.write(encoded.getbuffer())
