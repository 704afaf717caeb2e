"""From a file to references: `find_format` tells what it is, `open_virtual` and `open_virtual_tree` parse it."""

from icelite.formats.detect import Format, find_format
from icelite.formats.opening import open_virtual, open_virtual_tree

__all__ = ["Format", "find_format", "open_virtual", "open_virtual_tree"]
