"""The command line ``icelite``: each verb is one call of a public function, and prints what that returned."""

from icelite.cli.main import main

__all__ = ["main"]
