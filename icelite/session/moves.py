"""Moving nodes: the one thing a rearrange session does. Nothing but paths changes; ids and chunks stay."""

from __future__ import annotations

from icelite.change_set import ChangeSet
from icelite.errors import AlreadyExistsError, ErrorKind, NodeNotFoundError, SessionStateError
from icelite.keys import check_path


class Moves:
    """The part of `Session` that moves nodes."""

    changes: ChangeSet
    _rearrange: bool

    def move(self, from_path: str, to_path: str) -> None:
        """Rename or move a node, with everything below it.

        Parameters
        ----------
        from_path, to_path
            Such as ``/data/old`` and ``/archive/new``. The group above ``to_path`` must exist.

        Raises
        ------
        SessionStateError
            ``non-rearrange-session``, ``move-into-self-or-descendant``, ``move-destination-parent-missing``,
            ``move-destination-parent-not-group``.
        NodeNotFoundError, AlreadyExistsError, InvalidInputError
            ``node-not-found``; ``move-wont-overwrite``; ``invalid-path``.
        """
        if not self._rearrange:
            raise SessionStateError(
                f"{self} cannot move nodes; Repository.rearrange_session(branch) gives a session that can",
                ErrorKind.NON_REARRANGE_SESSION,
            )
        source, target = check_path(from_path), check_path(to_path)
        if source == target or source == "" or target.startswith(source + "/"):
            raise SessionStateError(
                f"/{source} cannot be moved to /{target}: a node does not go into itself",
                ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT,
            )
        if self.changes.nodes.find(source) is None:
            raise NodeNotFoundError(f"no node at /{source} to move", ErrorKind.NODE_NOT_FOUND)
        if self.changes.nodes.list_below(target):
            raise AlreadyExistsError(
                f"/{target} already exists, and a move never overwrites; delete it in another commit first",
                ErrorKind.MOVE_WONT_OVERWRITE,
            )
        self._check_parent(target)
        self.changes.nodes.move(source, target)

    def _check_parent(self, target: str) -> None:
        parent = target.rpartition("/")[0]
        entry = self.changes.nodes.find(parent)
        if entry is None:
            raise SessionStateError(
                f"there is no group /{parent} to move into; create it in another commit first",
                ErrorKind.MOVE_DESTINATION_PARENT_MISSING,
            )
        if entry.info is not None:
            raise SessionStateError(
                f"/{parent} is an array; nodes live in groups", ErrorKind.MOVE_DESTINATION_PARENT_NOT_GROUP
            )
