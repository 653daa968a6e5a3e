"""`modelnet …`: the network from a terminal. Commands live in one module a topic and import what they need when run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["invoke", "main"]


def main() -> None:
    """Entry of the `modelnet` script."""
    code = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has had enough, and Python would complain of it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def invoke(arguments: Sequence[str]) -> int:
    """Run a command line: its exit code. 0 done, 2 wrong usage, 130 interrupted, 1 everything else."""
    import typer

    from modelnet.cli.app import app
    from modelnet.cli.session import exit_code, show_error
    from modelnet.errors import ModelnetError, UsageError

    as_json = "--json" in arguments
    try:
        return int(app(list(arguments), prog_name="modelnet", standalone_mode=False) or 0)
    except typer.TyperException as error:
        if as_json:
            show_error(UsageError(error.format_message()), as_json=True)
        else:
            from typer.rich_utils import rich_format_error

            rich_format_error(error)  # type: ignore[arg-type]  # it shows any of Typer's exceptions
        return error.exit_code
    except ModelnetError as error:
        show_error(error, as_json=as_json)
        return exit_code(error)
    except BrokenPipeError:
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
