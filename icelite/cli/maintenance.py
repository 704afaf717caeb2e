"""Verbs that keep a catalog small: expire, gc, compact."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from icelite.cli.catalogs import CATALOG, CatalogArgument, json_option
from icelite.cli.output import line, plain, print_json, size, table
from icelite.errors import ErrorKind, InvalidInputError
from icelite.repository import Repository

_SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"(\d{1,7})(min|h|d|w)")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Change nothing, only say what would go.")


class AgeType(click.ParamType):  # type: ignore[type-arg]  # no argument before click 8.3
    """Reads an age such as ``35d``, or a moment such as ``2024-08-01``, as the moment it means."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """See `click.ParamType.convert`."""
        if isinstance(value, datetime):
            return value
        age = _AGE.fullmatch(str(value))
        try:
            if age is not None:
                return datetime.now(UTC) - timedelta(seconds=int(age[1]) * _SECONDS[age[2]])
            moment = datetime.fromisoformat(str(value))
        except (ValueError, OverflowError) as error:
            raise InvalidInputError(
                f"{value!r} is no age such as 35d (min, h, d, w) and no date such as 2024-08-01T12:00Z",
                ErrorKind.INVALID_ARGUMENT,
            ) from error
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


AGE = AgeType()


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@click.option("--older-than", type=AGE, metavar="AGE", help="35d (min, h, d, w) or a date; not needed with --keep-...")
@click.option("--keep-last", type=int, default=0, metavar="N", help="Of those, keep the newest N of each branch.")
@click.option("--keep-daily", type=int, default=0, metavar="N", help="Keep the newest of each of the last N days.")
@click.option("--keep-weekly", type=int, default=0, metavar="N", help="Likewise of the last N weeks.")
@click.option("--keep-monthly", type=int, default=0, metavar="N", help="Likewise of the last N months.")
@click.option("--keep-yearly", type=int, default=0, metavar="N", help="Likewise of the last N years.")
@click.option("--keep-tags/--delete-tags", default=True, show_default=True, help="What becomes of tags that old.")
@click.option(
    "--keep-branches/--delete-branches", default=True, show_default=True, help="And of branches other than main."
)
@DRY_RUN
@json_option
def expire(
    catalog: CatalogArgument,
    older_than: datetime | None,
    keep_tags: bool,
    keep_branches: bool,
    dry_run: bool,
    as_json: bool,
    **keep: int,
) -> None:
    """Release old snapshots; gc then removes what only they saw.

    Tips of branches and tagged snapshots stay. Days, weeks, months and years are those of UTC; only those that have a
    snapshot count.

    \b
    icelite expire ocean.icelite --older-than 35d --keep-daily 30 --keep-tags
    icelite expire ocean.icelite --keep-daily 30 --keep-monthly 12 --dry-run
    """
    if older_than is None and not any(keep.values()):
        raise InvalidInputError(
            "nothing says what to release: give --older-than, such as 35d, or a rule such as --keep-daily 30",
            ErrorKind.INVALID_ARGUMENT,
        )
    moment = datetime.now(UTC) if older_than is None else older_than
    repository = catalog.open_whole()
    released = repository.expire_snapshots(
        moment,
        delete_expired_tags=not keep_tags,
        delete_expired_branches=not keep_branches,
        dry_run=dry_run,
        **keep,
    )
    if as_json:
        print_json({"older_than": moment, "released": released, "dry_run": dry_run})
        return
    if dry_run:
        _show(repository, released)
    line(f"{'would release' if dry_run else 'released'} {len(released):,} snapshots")


def _show(repository: Repository, ids: set[str]) -> None:
    infos = sorted(map(repository.lookup_snapshot, ids), key=lambda info: info.written_at, reverse=True)
    rows = [(info.id, info.written_at.strftime("%Y-%m-%d %H:%M:%S"), info.message) for info in infos]
    if rows:
        table(["snapshot", "written (UTC)", "message"], rows)


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@click.option(
    "--older-than",
    type=AGE,
    default="1d",
    show_default=True,
    metavar="AGE",
    help="Spare what is younger: a session that has not committed may be about to refer to it.",
)
@DRY_RUN
@json_option
def gc(catalog: CatalogArgument, older_than: datetime, dry_run: bool, as_json: bool) -> None:
    """Remove what no branch or tag reaches, and rows and bytes that no snapshot sees.

    The file keeps its size, and later commits fill the space; compact gives it back.

    \b
    icelite gc ocean.icelite
    icelite gc ocean.icelite --older-than 12h --dry-run
    """
    summary = catalog.open_whole().garbage_collect(older_than, dry_run=dry_run)
    if as_json:
        print_json({"older_than": older_than, **plain(summary), "dry_run": dry_run})
        return
    counts = {name.removesuffix("_deleted").replace("_", " "): count for name, count in asdict(summary).items()}
    freed = size(counts.pop("bytes"))
    found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    line(f"{'would remove' if dry_run else 'removed'} {found or 'nothing'}" + (f"; {freed} of chunks" if found else ""))


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@DRY_RUN
@json_option
def compact(catalog: CatalogArgument, dry_run: bool, as_json: bool) -> None:
    """Give the space of what was removed back to the file system.

    \b
    icelite compact ocean.icelite
    icelite compact ocean.icelite --dry-run
    """
    done = catalog.open_whole().compact(dry_run=dry_run)
    if as_json:
        print_json({**plain(done), "dry_run": dry_run})
    else:
        after = f"{size(done.bytes_after)}{' at most' if dry_run else ''}"
        line(f"{size(done.bytes_before)} before, {after} {'would be left' if dry_run else 'now'}")


COMMANDS = (expire, gc, compact)
