"""`check`: what this machine has of what is needed, and how to get the rest."""

import os
import sys

import click


@click.group()
def check() -> None:
    """Find out what this machine lacks for something."""


@check.command("rootless")
def rootless() -> None:
    """Say what an ordinary user's daemon lacks here.

    Each line is something that it needs, or is better with, and a remedy if it is not there. Exit code: 0 if `pyctrd`
    can be started by this user, 1 if something is missing.
    """
    # The daemon's program knows what it needs, and no client is a daemon.
    command = [sys.executable, "-m", "pyctrd", "check", "rootless"]
    os.execv(command[0], command)  # noqa: S606 - our own command line
