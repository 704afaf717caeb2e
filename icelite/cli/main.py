"""The command ``icelite`` and its verbs; a failure ends in one line on stderr and exit code 1, never a traceback."""

from __future__ import annotations

import os
import sys

import click

import icelite
from icelite.cli import inspect, maintenance, references, transfer
from icelite.errors import IceliteError, InternalError

INTERRUPTED = 130  # what a shell expects after Ctrl-C


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(icelite.__version__, prog_name="icelite")
def commands() -> None:
    """Version-controlled Zarr stores, each in one SQLite file.

    PATH is a catalog such as ocean.icelite, or a URL. PATH@REF names a branch, tag or snapshot id of it; without @REF
    it is the branch main. Every verb takes --json for scripts.
    """


for command in (*inspect.COMMANDS, *references.COMMANDS, *transfer.COMMANDS, *maintenance.COMMANDS):
    commands.add_command(command)


def main() -> None:
    """Run the command line with the arguments of this process, and exit."""
    try:
        code = commands.main(standalone_mode=False)
    except click.exceptions.Abort:
        _end("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InternalError as error:
        _end(f"{error.message}; please report this")
    except IceliteError as error:
        _end(error.message)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, ImportError) as error:
        _end(str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int = 1) -> None:
    click.echo(f"icelite: error: {' '.join(message.split())}", err=True)
    sys.exit(code)
