"""Verbs that make a catalog and look at it: create, info, log, ls, diff, verify."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

import click

from icelite.catalog.operations import now
from icelite.cli.catalogs import CATALOG, CatalogArgument, access_option, json_option, progress_bar
from icelite.cli.output import line, plain, print_json, size, table
from icelite.config import RepositoryConfig
from icelite.metadata import array_info, parse_document
from icelite.repository import Repository
from icelite.types import FileChange, Node


@click.command()
@click.argument("path")
@click.option("--objects", metavar="PLACE", help="Folder or URL for large chunks; by default the file holds them.")
@click.option("--inline-threshold", type=int, metavar="BYTES", help="Chunks up to this size stay in the file.")
@json_option
def create(path: str, objects: str | None, inline_threshold: int | None, as_json: bool) -> None:
    """Make an empty catalog.

    \b
    icelite create ocean.icelite
    icelite create ocean.icelite --objects ./chunks
    """
    repository = Repository.create(path, RepositoryConfig(inline_threshold), objects=objects)
    tip = repository.lookup_branch("main")
    if as_json:
        print_json({"path": repository.storage.name, "branch": "main", "snapshot_id": tip})
    else:
        line(f"created {repository.storage.name}: branch main at {tip}")


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@json_option
def info(catalog: CatalogArgument, as_json: bool) -> None:
    """Say what is in a catalog: branches, tags, snapshots, bytes, and what to authorise.

    \b
    icelite info ocean.icelite
    """
    repository = catalog.open()
    stats = repository.chunk_storage_stats()
    facts: dict[str, Any] = {
        "path": repository.storage.name,
        "branches": {name: repository.lookup_branch(name) for name in sorted(repository.list_branches())},
        "tags": {name: repository.lookup_tag(name) for name in sorted(repository.list_tags())},
        "snapshots": len(repository.inspect_repo_info()["snapshots"]),
        "inline_bytes": stats.inlined_bytes,
        "native_bytes": stats.native_bytes,
        "virtual_bytes": stats.virtual_bytes,
        "required_access": repository.required_access(),
        "status": repository.status.availability.name,
    }
    if as_json:
        print_json(facts)
        return
    line(facts["path"])
    for name in ("branches", "tags"):
        for ref, snapshot_id in facts[name].items():
            line(f"  {name.removesuffix('es' if name == 'branches' else 's'):10} {ref:24} {snapshot_id}")
    line(f"  {'snapshots':10} {facts['snapshots']:,}")
    for name in ("inline", "native", "virtual"):
        line(f"  {name:10} {size(facts[f'{name}_bytes'])}")
    for prefix, credential in facts["required_access"].items():
        line(f"  needs access to {prefix}: authorize_virtual_chunk_access={{{prefix!r}: {credential}}}")
    if facts["status"] != "online":
        line(f"  status     {facts['status']}")


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.option("-n", "count", type=click.IntRange(min=0), help="Show at most so many snapshots.")
@click.option("--file", "url", metavar="URL", help="Only those that added, changed or dropped this file.")
@json_option
def log(catalog: CatalogArgument, count: int | None, url: str | None, as_json: bool) -> None:
    """List snapshots, newest first.

    URL is a file as sources lists it, or its path below the catalog's folder.

    \b
    icelite log ocean.icelite
    icelite log ocean.icelite@august -n 3 --json
    icelite log ocean.icelite --file data/2024-08-30.nc
    """
    repository = catalog.open()
    names = catalog.names(repository)
    if url is not None:
        _show_history(repository.file_history(url, **names)[:count], as_json)
        return
    shown = list(islice(repository.ancestry(**names), count))
    if as_json:
        print_json(shown)
        return
    marks: dict[str, list[str]] = {}
    for name in sorted(repository.list_branches()):
        marks.setdefault(repository.lookup_branch(name), []).append(name)
    for name in sorted(repository.list_tags()):
        marks.setdefault(repository.lookup_tag(name), []).append(f"tag {name}")
    rows = [
        (s.id, s.written_at.strftime("%Y-%m-%d %H:%M:%S"), s.message, ", ".join(marks.get(s.id, []))) for s in shown
    ]
    table(["snapshot", "written (UTC)", "message", "refs"], rows)


def _show_history(changes: list[FileChange], as_json: bool) -> None:
    if as_json:
        print_json(changes)
        return
    rows = [
        (c.snapshot_id, c.written_at.strftime("%Y-%m-%d %H:%M:%S"), c.change, c.references, c.message or "")
        for c in changes
    ]
    table(["snapshot", "written (UTC)", "file", "references", "message"], rows, right=("references",))


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.argument("group", default="")
@json_option
def ls(catalog: CatalogArgument, group: str, as_json: bool) -> None:
    """List the groups and arrays of a snapshot, with shapes, types and stored bytes.

    \b
    icelite ls ocean.icelite
    icelite ls ocean.icelite@august monthly/means
    """
    repository = catalog.open()
    session = repository.readonly_session(**catalog.names(repository))
    bare = group.strip("/")
    nodes = session.changes.nodes.list_below("")
    below = [node for node in nodes if not bare or node.path == bare or node.path.startswith(bare + "/")]
    if bare and not below:
        session.get_node_id(bare)  # raises, naming it
    rows = [_describe(node, session) for node in sorted(below, key=lambda node: node.path)]
    if as_json:
        print_json(rows)
        return
    heads = ["path", "kind", "shape", "chunks", "dtype", "dimensions", "stored", "bytes"]
    table(heads, [_row(row) for row in rows], right=("stored", "bytes"))


def _describe(node: Node, session: Any) -> dict[str, Any]:
    array = array_info(node.path, node.documents)
    facts: dict[str, Any] = {"path": "/" + node.path, "kind": "group" if array is None else "array"}
    if array is not None:
        name = ".zarray" if ".zarray" in node.documents else "zarr.json"
        document = parse_document(node.path, node.documents[name])
        attributes = document.get("attributes") or parse_document(node.path, node.documents.get(".zattrs", "{}"))
        dtype = document.get("data_type", document.get("dtype"))
        sizes = [length for _, length in session.changes.chunks.sizes(node.node_id)]
        facts |= {
            "shape": array.shape,
            "chunks": array.chunks,
            "dtype": dtype if isinstance(dtype, str) else plain(dtype),
            "dimensions": document.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS"),
            "stored_chunks": len(sizes),
            "stored_bytes": sum(sizes),
        }
    return facts | {"zarr_format": node.zarr_format}


def _row(facts: dict[str, Any]) -> list[str | int]:
    if facts["kind"] == "group":
        return [facts["path"], "group", "", "", "", "", "", ""]
    dtype = facts["dtype"] if isinstance(facts["dtype"], str) else str(facts["dtype"].get("name", "structured"))
    return [
        facts["path"],
        "array",
        " x ".join(map(str, facts["shape"])),
        " x ".join(map(str, facts["chunks"] or ())),
        dtype,
        ", ".join(str(name) for name in facts["dimensions"] or ()),
        facts["stored_chunks"],
        facts["stored_bytes"],
    ]


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.argument("to_ref", metavar="[TO]", default="main")
@json_option
def diff(catalog: CatalogArgument, to_ref: str, as_json: bool) -> None:
    """Say what changed from one snapshot to a later one: PATH@OLD NEW.

    \b
    icelite diff ocean.icelite@august           # from the tag august to main
    icelite diff ocean.icelite@august september
    """
    repository = catalog.open()
    before = catalog.snapshot_id(repository) if catalog.ref is not None else None
    after = CatalogArgument(catalog.path, to_ref).snapshot_id(repository)
    if before is None:  # what the newest snapshot did
        before = repository.lookup_snapshot(after).parent_id or after
    found = repository.diff(from_snapshot_id=before, to_snapshot_id=after)
    if as_json:
        print_json(found)
    else:
        click.echo(repr(found))


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.option("--sources", is_flag=True, help="Check every source file of the snapshot as well, once each.")
@access_option
@json_option
def verify(catalog: CatalogArgument, sources: bool, access: tuple[str, ...], as_json: bool) -> None:
    """Check every rule of the file format, and with --sources the files behind the references.

    \b
    icelite verify ocean.icelite
    icelite verify ocean.icelite@august --sources --access file:///data/
    """
    repository = catalog.open(access, check="never")  # a damaged file is to be described, not refused
    problems = repository.verify()
    if sources:
        with progress_bar("Checking sources") as progress:
            problems += repository.verify_sources(**catalog.names(repository), progress=progress)
    if as_json:
        print_json({"problems": problems, "checked_at": now()})
    elif not problems:
        line("no problems found")
    else:
        table(["check", "subject", "detail"], [(p.check, p.subject, p.detail) for p in problems])
    if problems:
        sys.exit(1)


COMMANDS = (create, info, log, ls, diff, verify)
