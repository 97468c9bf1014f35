"""The command line: one module for each command, which parses, calls tinyfcn and prints."""

import codecs
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, cast

import click

from tinyfcn.cli.options import InOrder
from tinyfcn.errors import TinyfcnError
from tinyfcn.training import Interrupted

SIGNALLED = 128  # a shell reports a program that a signal ended as this code plus the signal's number


class Commands(Mapping[str, click.Command]):
    """The commands by their names, in the order of use. A command's module is imported when the command is asked for.

    All of them together take longer to import than most commands to run.
    """

    NAMES = (
        "train-cnn",
        "train-fcn",
        "evaluate",
        "predict",
        "make-m2nist",
        "check",
        "gradcheck",
        "sanitize",
        "profile",
        "kernels",
        "ladder",
        "exercise",
        "trace",
        "page",
        "sweep",
        "bench",
        "info",
    )

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.NAMES:
            raise KeyError(name)
        module = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"tinyfcn.cli.{module}"), module)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class Group(InOrder):
    """Prints an error that a user can mend as one line and exits with 1. For wrong usage click exits with 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:  # closed: the next file would get its number, and with it what C libraries print
                os.open(os.devnull, os.O_RDWR)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A name may hold what the encoding cannot write. In place of ASCII click writes UTF-8, with ? for it.
                ascii_only = codecs.lookup(stream.encoding).name == "ascii"
                stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Interrupted, KeyboardInterrupt) as stopped:
            with suppress(OSError):  # the terminal may be gone: that is what SIGHUP says
                click.echo(str(stopped) or "stopped by Ctrl-C", err=True)
            sys.exit(SIGNALLED + getattr(stopped, "signal_number", signal.SIGINT))
        except TinyfcnError as error:
            message = str(error)
        except MemoryError as error:
            message = f"not enough memory ({error}): choose a smaller --batch, --fixed or image"
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of a pipe has ended; click exits silently
            message = f"{error.filename or 'the output'}: {error.strerror}"
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)


@click.group(
    cls=Group,
    commands=cast(Any, Commands()),  # click wants a mapping that it could add to, and does not
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="tinyfcn", message="tinyfcn %(version)s")
def main() -> None:
    """A small fully convolutional network from scratch: it learns MNIST, then names the digit at every pixel.

    \b
    tinyfcn train-cnn               train the classifier (a minute or so on a laptop)
    tinyfcn train-fcn               train the FCN on its weights (some minutes)
    tinyfcn predict runs/fcn-1 photo.png
    tinyfcn trace runs/fcn-1        a look inside: every layer's map, what a pixel depends on
    tinyfcn page runs/fcn-1 --open  draw digits, and see every pixel named
    tinyfcn check conv2d            after an edit of conv2d.cu: is everything right?
    tinyfcn profile conv2d          why is it slow? requests, sectors, bank conflicts of each line
    tinyfcn kernels conv2d          its kernels; with --element 0,1,2,3 who computes that element, from what
    tinyfcn ladder conv2d           from the plainest kernel to the one that trains
    tinyfcn exercise start          write kernels yourself: a hole to fill, and a check
    tinyfcn sweep SPACE.toml        a study of many small trainings, and its answer
    tinyfcn bench                   how fast it is, beside PyTorch
    tinyfcn info                    what this machine has and lacks
    """
