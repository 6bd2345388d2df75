"""The command line: its commands, and how every error becomes one line."""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated

import typer

from gmtool import __version__
from gmtool.cli import quickstart
from gmtool.console import close_bar
from gmtool.errors import FULL, GmtoolError, is_out_of_memory
from gmtool.flags import GroupedCommand
from gmtool.stages.bench import command as bench
from gmtool.stages.distill import command as distill
from gmtool.stages.encode import command as encode
from gmtool.stages.evaluate import command as evaluate
from gmtool.stages.fit_gmm import command as fit_gmm
from gmtool.stages.import_run import command as import_run
from gmtool.stages.inspect import command as inspect
from gmtool.stages.likelihood import command as likelihood
from gmtool.stages.reconstruct import command as reconstruct
from gmtool.stages.report import command as report
from gmtool.stages.sample import command as sample
from gmtool.stages.sweep import command as sweep
from gmtool.stages.train import command as train
from gmtool.stages.train_decoder import command as train_decoder

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""Click's base of all errors in what was typed, whether typer brings its own click or uses the installed one."""

INTERRUPTED = (
    "interrupted; run the same command again (encode, fit-gmm, train, train-decoder, distill, sample and sweep resume)"
)

app = typer.Typer(
    name="gmtool",
    help="Train and sample image generators with Gaussian mixtures in a flow-matching model.",
    epilog="Example: gmtool encode imagenet/ && gmtool fit-gmm --modes 8192 && gmtool train --objective gm-kl && "
    "gmtool sample --steps 6 --guidance prob && gmtool eval",
    rich_markup_mode=None,  # plain help: the rich one costs 0.1 s of processor time at every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _name, _command in {
    "encode": encode.command,
    "fit-gmm": fit_gmm.command,
    "train": train.command,
    "train-decoder": train_decoder.command,
    "reconstruct": reconstruct.command,
    "distill": distill.command,
    "sample": sample.command,
    "eval": evaluate.command,
    "likelihood": likelihood.command,
    "sweep": sweep.command,
    "import": import_run.command,
    "inspect": inspect.command,
    "quickstart": quickstart.command,
    "report": report.command,
    "bench": bench.command,
}.items():
    # the first sentence, whole: click would cut it where the line ends
    app.command(_name, cls=GroupedCommand, short_help=str(_command.__doc__).split("\n", 1)[0])(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gmtool {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _callback(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def execute(arguments: Sequence[str] | None) -> int:
    """Run one command and return its exit code; its errors are raised.

    arguments: the words after ``gmtool``; None for those of this process.
    """
    return typer.main.get_command(app).main(args=arguments, prog_name="gmtool", standalone_mode=False) or 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for user errors, 1 for other errors, 130 if interrupted.

    SIGTERM, which schedulers send before they take a machine away, interrupts a command as Ctrl-C does. Under torchrun
    the processes form a group, and the first of them that fails says why.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that a terminal cannot show must not end what was done
            stream.reconfigure(errors="backslashreplace")
    # OpenMP's threads spin while they wait, by default: on a machine that does something else too, a training step of a
    # small network then takes several times as long. It is read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _terminable():
        if not _under_torchrun():
            return _report(*_attempt(arguments))
        from gmtool.distributed import process_group

        with process_group() as first_to_fail:
            code, problem = _attempt(arguments)
            if code and not first_to_fail():
                problem = None
        return _report(code, problem)


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM raises KeyboardInterrupt, once: what was begun is put in order, and a line says what to do."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _attempt(arguments: Sequence[str] | None) -> tuple[int, str | None]:
    """Run one command; return its exit code, and what went wrong if it is to be said."""
    try:
        code = execute(arguments)
        return code, INTERRUPTED if code == 130 else None  # typer turns an interruption into this code
    except (KeyboardInterrupt, typer.Abort):
        return 130, INTERRUPTED
    except GmtoolError as error:
        return error.exit_code, str(error)
    except USAGE_ERROR as error:
        return 2, error.format_message() + _help_hint(error)  # type: ignore[attr-defined]  # a ClickException
    except BrokenPipeError:
        # the reader of our output has gone (| head); what is left to flush would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, None
    except Exception as error:  # the last net: a user sees one line, a developer sets GMTOOL_TRACEBACK
        if os.environ.get("GMTOOL_TRACEBACK"):
            raise
        return _explain(error)


def run() -> None:
    """Entry point of the ``gmtool`` script and of ``python -m gmtool``: run one command, and end the process.

    Under torchrun the process ends without tearing the interpreter down, once what is registered for exit has run.
    The threads of gloo and NCCL outlive the process group if something still refers to it, and one that lets go of a
    tensor while the interpreter is torn down makes C++ abort a process whose work is done; torchrun would report that
    as a failure.
    """
    code = main()
    if not _under_torchrun():
        sys.exit(code)
    atexit._run_exitfuncs()  # such as those that remove temporary files
    with suppress(OSError):  # the reader of the output has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _under_torchrun() -> bool:
    """Whether torchrun started this process; known without importing torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _help_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""


_UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
"""What the system says of a path that nothing can be at, or something else is."""


def _explain(error: Exception) -> tuple[int, str]:
    """An exit code and one line for an error that no stage foresaw."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        # h5py raises plain OSErrors with the number in the text
        full = next((why for number, why in FULL.items() if error.errno == number or f"errno = {number}," in text), "")
        if full or "No space left" in text:
            return 1, f"{full or FULL[errno.ENOSPC]}: free some space, and run the same command again"
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return 2, f"{error.filename or text}: no permission to read or write it"
        if isinstance(error, FileNotFoundError) and error.filename:
            return 2, f"{error.filename} does not exist"
        if error.errno in _UNUSABLE and error.filename:
            return 2, f"{error.filename} cannot be used ({str(error.strerror).lower()}): choose another path"
    if is_out_of_memory(error):
        advice = "use a smaller --batch-size, fewer --workers or less --memory, where a command has them"
        return 1, f"out of memory: {advice}"
    if any(words in text for words in ("closed by peer", "reset by peer", "ncclRemoteError")):
        return 1, "another of the processes has died, perhaps for want of memory: run the same command again"
    return 1, f"internal error: {type(error).__name__}: {text} (set GMTOOL_TRACEBACK=1 for the traceback)"


LONGEST_WORD, LONGEST_LINE = 400, 2000
"""Largest lengths in an error message, in letters: long arguments or file contents do not flood the terminal."""


def _shortened(text: str) -> str:
    """A text in one line, the middle of long words and of a long line left out."""
    line = " ".join(_middle_left_out(word, LONGEST_WORD) for word in text.split())
    return _middle_left_out(line, LONGEST_LINE)


def _middle_left_out(text: str, length: int) -> str:
    kept = (length - 3) // 2
    return text if len(text) <= length else f"{text[:kept]}...{text[-kept:]}"


def _report(code: int, problem: str | None) -> int:
    """Say what went wrong, if anything, on the process's own standard error, and return the exit code."""
    close_bar()
    if problem is not None:
        print(f"gmtool: error: {_shortened(problem)}", file=sys.stderr)
    return code
