"""Relocation: files and objects have moved, and every reference to them follows, in all of history.

Only rows of `location` and `container` change: one for each file, never one for each reference. What is to change is
computed twice, before and inside the one write transaction, so that nothing is looked at while the file is locked.
Two locations may become equal; both stay, since references name them by number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from icelite.catalog import locations as location_table
from icelite.catalog import settings
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.operations import log_operation
from icelite.catalog.settings import check_online
from icelite.config import VirtualChunkContainer, covers, longest_covering
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, NotFoundError, StorageError, redact
from icelite.ops.prefixes import Prefix, check_location, join, parent, parse_prefix
from icelite.storage import StorageConfig
from icelite.types import Location, Relocation, SourceStamp
from icelite.virtual import VirtualAccess, refusal
from icelite.virtual.source import fetch_error

AT_ONCE = 32  # sources that are looked at together
SHOWN = 5  # examples, and problems in an error
KNOWN = 10  # prefixes that an error names

Containers = dict[str, VirtualChunkContainer]  # by name


@dataclass(slots=True)
class RelocationPlan:
    """What changes.

    Attributes
    ----------
    before, after
        Locations by id; of those in a container that moves as a whole only the recorded times change, if at all.
    moved
        Prefixes of containers, and their new ones.
    added
        Containers for what would be covered by none.
    urls
        The absolute URL of each location before and after.
    """

    old: Prefix
    new: Prefix
    before: dict[int, Location] = field(default_factory=dict)
    after: dict[int, Location] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    added: list[VirtualChunkContainer] = field(default_factory=list)
    urls: dict[int, tuple[str, str]] = field(default_factory=dict)

    def containers(self, known: Containers) -> Containers:
        """All containers as they are afterwards."""
        after = [c.at(self.moved[c.url_prefix]) if c.url_prefix in self.moved else c for c in known.values()]
        return {str(container.name): container for container in [*after, *self.added]}

    def summary(self) -> Relocation:
        """What to tell."""
        return Relocation(
            count=len(self.after),
            old_prefix=redact(str(self.old)),
            new_prefix=redact(str(self.new)),
            examples=tuple((redact(old), redact(new)) for old, new in list(self.urls.values())[:SHOWN]),
            containers=(*self.moved.values(), *(container.url_prefix for container in self.added)),
        )


def relocate(
    catalog: Catalog, access: VirtualAccess, old_prefix: str, new_prefix: str, *, dry_run: bool, check: bool
) -> tuple[Relocation, dict[str, str]]:
    """Rewrite locations; what was done, and the containers that moved. See `Repository.relocate`."""
    old, new = (parse_prefix(prefix, catalog.storage) for prefix in (old_prefix, new_prefix))
    if "://" in new_prefix and not new_prefix.startswith("file://"):
        access.check_unsigned(new_prefix)
    with catalog.read() as txn:
        known = settings.list_containers(txn)
        plan = make_plan(location_table.load_locations(txn), known, old, new, catalog.storage)
    stamps = _check(access.with_containers(plan.containers(known), plan.moved), plan) if check else {}
    if dry_run:
        return plan.summary(), {}
    with catalog.write() as txn:
        check_online(txn)
        known = settings.list_containers(txn)
        plan = make_plan(location_table.load_locations(txn), known, old, new, catalog.storage)
        _apply(txn, plan, known, stamps)
    for number, place in plan.after.items():
        access.follow(plan.before[number], place)
    return plan.summary(), plan.moved


# -- what changes ------------------------------------------------------------------------------------------------


def make_plan(
    locations: Mapping[int, Location], containers: Containers, old: Prefix, new: Prefix, storage: StorageConfig
) -> RelocationPlan:
    """What has to change for everything below one prefix to be below another.

    Raises
    ------
    InvalidInputError, NotFoundError
        ``no-container-for-virtual-chunk`` for a container that does not exist, ``invalid-virtual-ref`` for a location
        that cannot be in the new place; ``location-not-found`` when nothing is below ``old``.
    """
    for prefix in (old, new):
        if prefix.container is not None and prefix.container not in containers:
            raise refusal.unknown_container(prefix.container, str(prefix), sorted(containers))
    if old.container is not None and not old.text and new.is_absolute:  # a whole container goes: so does its name
        old = Prefix(containers[old.container].url_prefix)
    plan = RelocationPlan(old, new)
    if old.is_absolute and new.is_absolute:
        plan.moved = _moved_containers(containers, old.text, new.text)
    afterwards = plan.containers(containers)
    found = False
    for number, place in locations.items():
        after = _moved(place, plan, containers)
        if after is None:
            continue
        found = True
        before_url, after_url = _url(place, containers, storage), _url(after, afterwards, storage)
        if before_url != after_url or place != after:
            check_location(after_url)
            plan.before[number], plan.after[number] = place, _restamped(after, before_url, after_url)
            plan.urls[number] = before_url, after_url
    if not found and not plan.moved:
        raise _nothing(old, locations.values(), containers, storage)
    prefixes = {container.url_prefix: None for container in afterwards.values()}
    for place in plan.after.values():
        if place.container is None and "://" in place.path and longest_covering(prefixes, place.path) is None:
            folder = new.text if covers(new.text, parent(place.path)) else parent(place.path)
            plan.added.append(VirtualChunkContainer(folder))
            prefixes[folder] = None
    return plan


def _moved_containers(containers: Containers, old: str, new: str) -> dict[str, str]:
    """Containers whose whole prefix is below the old one; those whose new place is another's already stay."""
    taken = {container.url_prefix for container in containers.values()}
    moved = {prefix: new + prefix[len(old) :] for prefix in taken if prefix.startswith(old)}
    staying = taken - moved.keys()
    return {before: after for before, after in moved.items() if after not in staying and before != after}


def _moved(place: Location, plan: RelocationPlan, containers: Containers) -> Location | None:
    """Where a location is afterwards; itself if only its container moves; None when it is not concerned."""
    rest = plan.old.find_rest(place)
    if rest is not None:
        return plan.new.put(rest, place)
    if place.container is None or not plan.old.is_absolute or place.container not in containers:
        return None
    container = containers[place.container]
    if container.url_prefix in plan.moved:
        return place
    rest = plan.old.find_rest(replace(place, container=None, path=container.url_prefix + place.path))
    if rest is None:
        return None
    after = plan.new.put(rest, place)
    if covers(container.url_prefix, after.path) and after.container is None:  # it stays in its container
        return replace(after, path=after.path[len(container.url_prefix) :], container=place.container)
    return after


def _url(place: Location, containers: Containers, storage: StorageConfig) -> str:
    """The absolute URL; a relative path where the catalog is in no directory."""
    if place.container is not None:
        container = containers.get(place.container)
        return join(container.url_prefix, place.path) if container is not None else place.path
    if "://" in place.path or storage.home is None:
        return place.path
    home = storage.home if "://" in storage.home else f"file://{storage.home}/"
    return home + place.path


def _restamped(place: Location, before: str, after: str) -> Location:
    """With what must still be true of a file that moved: its size; and its time if it never left the file system."""
    if before == after or (before.startswith("file://") and after.startswith("file://")):
        return place
    return replace(place, etag=None, modified_at=None)


def _nothing(
    old: Prefix, locations: Iterable[Location], containers: Containers, storage: StorageConfig
) -> NotFoundError:
    folders = sorted({_folder(place) for place in locations})
    shown = ", ".join(map(repr, folders[:KNOWN])) or "none"
    more = f" and {len(folders) - KNOWN} more" if len(folders) > KNOWN else ""
    return NotFoundError(
        f"no reference is below {str(old)!r}; nothing was changed. There are references below {shown}{more}",
        ErrorKind.LOCATION_NOT_FOUND,
    )


def _folder(place: Location) -> str:
    folder = parent(place.path)
    return f"vcc://{place.container}/{folder}" if place.container is not None else folder or "./"


# -- looking at the new places, and writing -------------------------------------------------------------------------


def _check(access: VirtualAccess, plan: RelocationPlan) -> dict[Location, SourceStamp]:
    """What the sources look like in their new places, by location.

    Raises
    ------
    StorageError, InvalidInputError
        ``virtual-chunk-fetch``, ``virtual-chunk-modified``; the error of the gates where only those are in the way.
    """
    stamps: dict[Location, SourceStamp] = {}
    problems: list[IceliteError] = []

    def look(place: Location) -> SourceStamp | IceliteError:
        bare = replace(place, etag=None, modified_at=None)  # a copy has others; they are noted anew
        try:
            found = access.open(bare, None).check(None)
        except IceliteError as error:
            return error
        return found or fetch_error(None, access.url(place), "does not exist")

    for number, place in plan.after.items():
        access.follow(plan.before[number], place)
    places = list(dict.fromkeys(plan.after.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for place, found in zip(places, pool.map(look, places), strict=True):
            if isinstance(found, SourceStamp):
                stamps[place] = found
            else:
                problems.append(found)
    if problems:
        raise _refused(problems, len(places))
    return stamps


def _refused(problems: list[IceliteError], total: int) -> IceliteError:
    first = problems[0]
    shown = "; ".join(problem.message for problem in problems[:SHOWN])
    text = f"{len(problems)} of {total} sources are not in their new place, nothing was changed: {shown}"
    kind = first.kind if len({problem.kind for problem in problems}) == 1 else ErrorKind.VIRTUAL_CHUNK_FETCH
    return (InvalidInputError if isinstance(first, InvalidInputError) else StorageError)(text, kind)


def _apply(
    txn: Transaction, plan: RelocationPlan, containers: Containers, stamps: Mapping[Location, SourceStamp]
) -> None:
    by_prefix = {container.url_prefix: container for container in containers.values()}
    grows = len(plan.new.text) > len(plan.old.text)  # so that a prefix is free before another container gets it
    for before, after in sorted(plan.moved.items(), key=lambda pair: len(pair[0]), reverse=grows):
        settings.move_container(txn, before, by_prefix[before].at(after))
    for container in plan.added:
        settings.save_container(txn, container)
    location_table.update_locations(
        txn, {number: _with_stamp(place, stamps.get(place)) for number, place in plan.after.items()}
    )
    if plan.after or plan.moved:
        log_operation(
            txn,
            "LocationsRelocated",
            {"old_prefix": str(plan.old), "new_prefix": str(plan.new), "locations": len(plan.after)},
        )


def _with_stamp(place: Location, found: SourceStamp | None) -> Location:
    if found is None:
        return place
    has_time = found.modified_at is not None and place.size is not None
    return replace(place, etag=found.etag, modified_at=found.modified_at if has_time else None)
