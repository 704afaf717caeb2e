"""``python -m icelite`` is the command ``icelite``."""

from icelite.cli import main

main()
