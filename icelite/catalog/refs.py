"""The `branch` and `tag` tables: names for snapshots.

Names are checked when they are read, as when they are given. A branch moves only by compare-and-set. A tag never moves,
and a deleted tag's name is never free again.
"""

from __future__ import annotations

from icelite.budget import MAX_NAME_CHARACTERS
from icelite.catalog import values
from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Transaction
from icelite.catalog.values import check_number
from icelite.errors import ErrorKind, InvalidInputError, RefNotFoundError, shown

SELECT_BRANCH = "SELECT seq FROM branch WHERE name = ?"
SELECT_BRANCHES = "SELECT name FROM branch ORDER BY name"
INSERT_BRANCH = "INSERT INTO branch (name, seq, crc32c) VALUES (?, ?, ?)"
UPDATE_BRANCH = "UPDATE branch SET seq = ?3, crc32c = ?4 WHERE name = ?1 AND seq = ?2"
DELETE_BRANCH = "DELETE FROM branch WHERE name = ?"
SELECT_TAG = "SELECT seq FROM tag WHERE name = ?"
SELECT_TAGS = "SELECT name FROM tag WHERE seq IS NOT NULL ORDER BY name"
SELECT_DELETED_TAGS = "SELECT name FROM tag WHERE seq IS NULL ORDER BY name"
INSERT_TAG = "INSERT INTO tag (name, seq, crc32c) VALUES (?, ?, ?)"
DELETE_TAG = "UPDATE tag SET seq = NULL, crc32c = ?2 WHERE name = ?1"


def check_name(name: object, what: str) -> None:
    """Refuse a name that could not be told apart, printed or typed.

    Raises
    ------
    InvalidInputError
        ``invalid-ref-name`` when it is empty, too long, or has control characters or spaces at an end.
    """
    fault = None
    if not isinstance(name, str) or not name:
        fault = "is not a non-empty string"
    elif len(name) > MAX_NAME_CHARACTERS:
        fault = f"has {len(name)} characters, at most {MAX_NAME_CHARACTERS} are allowed"
    elif not name.isprintable():
        fault = "has control characters"
    elif name.strip() != name:
        fault = "begins or ends with a space"
    if fault is not None:
        raise InvalidInputError(f"{what} name {shown(name)} {fault}", ErrorKind.INVALID_REF_NAME)


def find_branch(txn: Transaction, name: str) -> int | None:
    """The ``seq`` of a branch's newest snapshot, or None."""
    row = txn.row(SELECT_BRANCH, (name,))
    return None if row is None else check_number(row[0], f"branch {shown(name)}")


def lookup_branch(txn: Transaction, name: str) -> int:
    """The ``seq`` of a branch's newest snapshot.

    Raises
    ------
    RefNotFoundError
        ``branch-not-found``.
    """
    seq = find_branch(txn, name)
    if seq is None:
        names = ", ".join(repr(n) for n in list_branches(txn)[:10])
        raise RefNotFoundError(f"no branch {shown(name)}; the branches are {names}", ErrorKind.BRANCH_NOT_FOUND)
    return seq


def list_branches(txn: Transaction) -> list[str]:
    """Names of all branches, sorted."""
    return [values.check_name(name, "a branch") for (name,) in txn.rows(SELECT_BRANCHES)]


def insert_branch(txn: Transaction, name: str, seq: int) -> None:
    """Add a branch whose name is free."""
    txn.run(INSERT_BRANCH, (name, seq, row_crc(name, seq)))


def move_branch(txn: Transaction, name: str, expected: int, seq: int) -> bool:
    """Point a branch at another snapshot, if it is still where it is expected."""
    return txn.run(UPDATE_BRANCH, (name, expected, seq, row_crc(name, seq))) == 1


def delete_branch(txn: Transaction, name: str) -> None:
    """Remove the name; the snapshots stay."""
    txn.run(DELETE_BRANCH, (name,))


def find_tag(txn: Transaction, name: str) -> tuple[int | None] | None:
    """None when the name was never used; else a 1-tuple: its ``seq``, or None when it was deleted."""
    row = txn.row(SELECT_TAG, (name,))
    if row is None:
        return None
    return (None if row[0] is None else check_number(row[0], f"tag {shown(name)}"),)


def lookup_tag(txn: Transaction, name: str) -> int:
    """The ``seq`` of a tag's snapshot.

    Raises
    ------
    RefNotFoundError
        ``tag-not-found``.
    """
    found = find_tag(txn, name)
    if found is None or found[0] is None:
        fate = "was deleted" if found else "does not exist"
        names = ", ".join(repr(n) for n in list_tags(txn)[:10]) or "none"
        raise RefNotFoundError(f"tag {shown(name)} {fate}; the tags are: {names}", ErrorKind.TAG_NOT_FOUND)
    return found[0]


def list_tags(txn: Transaction) -> list[str]:
    """Names of all tags that were not deleted, sorted."""
    return [values.check_name(name, "a tag") for (name,) in txn.rows(SELECT_TAGS)]


def list_deleted_tags(txn: Transaction) -> list[str]:
    """Names that were tags and can never be again, sorted."""
    return [values.check_name(name, "a deleted tag") for (name,) in txn.rows(SELECT_DELETED_TAGS)]


def insert_tag(txn: Transaction, name: str, seq: int) -> None:
    """Add a tag whose name was never used."""
    txn.run(INSERT_TAG, (name, seq, row_crc(name, seq)))


def delete_tag(txn: Transaction, name: str) -> None:
    """Delete a tag; its name stays taken."""
    txn.run(DELETE_TAG, (name, row_crc(name, None)))
