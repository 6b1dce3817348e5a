"""What a command is: a function of its options whose result is printed. Each file of commands adds its own by ``add_to``."""

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

from conlst.contract.config import Config, load_config

Result = dict[str, Any]
# argparse has no public name for it, and its class takes no parameter at run time
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_configured(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], Result], does: str, default: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that takes a configuration, for :func:`read_config`; returns its parser for options of its own.

    Args:
        does: what the command does, for its help and that of ``conlst``.
        default: the configuration if none is named; without it one must be named.
    """
    sub = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
    sub.set_defaults(command=function)
    add_configuration(sub, default)
    return sub


def add_configuration(sub: argparse.ArgumentParser, default: str | None = None) -> None:
    """Let a command take the configuration that :func:`read_config` reads; ``default`` as in :func:`add_configured`."""
    sub.add_argument(
        "--config", default=default, required=default is None, help="a .yaml file, or the name of a profile in configs/"
    )
    sub.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override a configuration value"
    )


def positive(text: str) -> int:
    """A number of at least 1, as a ``type`` of argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def read_config(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names, with the values of ``--set``.

    Raises:
        ConfigError: as :func:`conlst.contract.config.load_config`.
    """
    return load_config(options.config, tuple(options.set))
