"""Verbs about references into other files: virtualize, sources, refs, relocate, make-native."""

from __future__ import annotations

import sys
from typing import Any, Literal

import click

from icelite.cli.catalogs import CATALOG, CatalogArgument, access_option, authorizations, json_option, progress_bar
from icelite.cli.output import line, print_json, size, table
from icelite.errors import ErrorKind, InvalidInputError


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="CATALOG", help="The catalog to make or to append to.")
@click.option("--concat-dim", metavar="NAME", help="Dimension that the files follow one another along, such as time.")
@click.option("--group", metavar="PATH", help="Group to write; the root by default.")
@click.option("--branch", default="main", show_default=True, help="Branch to commit to.")
@click.option(
    "--parser", default="auto", show_default=True, help="netcdf4, netcdf3, grib, tiff, ...; auto: by content."
)
@click.option("--append/--no-append", default=None, help="Insist on appending, or on a new group.")
@click.option("--drop", multiple=True, metavar="VARIABLE", help="Leave a variable out. May be repeated.")
@click.option("--load", multiple=True, metavar="VARIABLE", help="Store a variable's values. May be repeated.")
@click.option(
    "--compat",
    type=click.Choice(["equals", "identical", "override"]),
    default="equals",
    show_default=True,
    help="How variables without the dimension must agree; override takes the first file's.",
)
@click.option("--stack", multiple=True, metavar="VARIABLE", help="Keep every file's value of it. May be repeated.")
@click.option("--skip-broken", is_flag=True, help="Leave out files that cannot be read, instead of stopping.")
@click.option("--no-copy", is_flag=True, help="Stop at chunks that cannot be referenced, instead of copying them.")
@click.option(
    "--on-unreadable",
    type=click.Choice(["skip", "raise"]),
    default="skip",
    show_default=True,
    help="Leave out variables that cannot be read, or stop at the first.",
)
@click.option("--workers", type=int, metavar="N", help="Processes that read files; by default one a core.")
@click.option("-m", "--message", help="Commit message; by default it says what was added.")
@access_option
@json_option
def virtualize(
    sources: tuple[str, ...],
    output: str,
    concat_dim: str | None,
    group: str | None,
    branch: str,
    parser: str,
    append: bool | None,
    drop: tuple[str, ...],
    load: tuple[str, ...],
    compat: Literal["equals", "identical", "override"],
    stack: tuple[str, ...],
    skip_broken: bool,
    no_copy: bool,
    on_unreadable: Literal["skip", "raise"],
    workers: int | None,
    message: str | None,
    access: tuple[str, ...],
    as_json: bool,
) -> None:
    """Turn files into one dataset of references, and commit it; only new files are added to what is there.

    SOURCES are paths, URLs, or quoted patterns of them.

    \b
    icelite virtualize 'data/*.nc' -o ocean.icelite --concat-dim time
    icelite virtualize 's3://bucket/2024/*.nc' -o ocean.icelite --concat-dim time --access s3://bucket/=anonymous
    """
    import icelite

    with progress_bar("Reading files") as progress:
        done = icelite.virtualize(
            list(sources),
            output,
            concat_dim=concat_dim,
            group=group,
            branch=branch,
            parser=parser,
            append=append,
            drop_variables=list(drop) or None,
            loadable_variables=list(load) or None,
            compat=compat,
            stack=list(stack) or None,
            skip_broken=skip_broken,
            on_unreferenceable="raise" if no_copy else "copy",
            on_unreadable=on_unreadable,
            workers=workers,
            message=message,
            authorize_virtual_chunk_access=authorizations(access),
            progress=progress,
        )
    print_json(done) if as_json else line(str(done))


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.option("--check", is_flag=True, help="Look at each file: is it there, and as it was?")
@access_option
@json_option
def sources(catalog: CatalogArgument, check: bool, access: tuple[str, ...], as_json: bool) -> None:
    """List the files that the virtual chunks of a snapshot are in.

    \b
    icelite sources ocean.icelite
    icelite sources ocean.icelite@august --check --json
    """
    repository = catalog.open(access)
    with progress_bar("Checking sources") as progress:
        found = repository.sources(**catalog.names(repository), check=check, progress=progress)
    if as_json:
        print_json(list(found))
    else:
        heads = ["source", "references", "bytes", "size", *(["state", "problem"] if check else [])]
        rows = [
            [row.url, row.references, row.bytes, "" if row.size is None else row.size]
            + ([row.state, row.problem] if check else [])
            for row in found
        ]
        table(heads, rows, right=("references", "bytes", "size"))
        references, total = sum(row.references for row in found), sum(row.bytes for row in found)
        line(f"{len(rows):,} sources, {references:,} references, {size(total)}")
    if any(row.problem for row in found):
        sys.exit(1)


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.argument("array")
@click.option("-n", "count", type=int, default=20, show_default=True, help="Rows to show; 0 shows all.")
@json_option
def refs(catalog: CatalogArgument, array: str, count: int, as_json: bool) -> None:
    """List where the chunks of an array are.

    \b
    icelite refs ocean.icelite sst
    icelite refs ocean.icelite@august sst -n 0 --json
    """
    repository = catalog.open()
    found = repository.readonly_session(**catalog.names(repository)).chunk_refs(array)
    columns: dict[str, Any] = found.to_dict()
    shown = len(found) if count == 0 or (as_json and count == 20) else min(count, len(found))
    rows = [
        {
            "chunk": "/".join(map(str, found.positions[row].tolist())),
            "kind": str(columns["kind"][row]),
            "url": str(columns["url"][row]),
            "offset": int(found.offsets[row]),
            "length": int(found.lengths[row]),
        }
        for row in range(shown)
    ]
    if as_json:
        print_json(rows)
        return
    heads = ["chunk", "kind", "url", "offset", "length"]
    table(heads, [list(row.values()) for row in rows], right=("offset", "length"))
    if shown < len(found):
        line(f"... and {len(found) - shown:,} more")


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@click.argument("old_prefix")
@click.argument("new_prefix")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--check", is_flag=True, help="Make sure that each file is in its new place.")
@access_option
@json_option
def relocate(
    catalog: CatalogArgument,
    old_prefix: str,
    new_prefix: str,
    dry_run: bool,
    check: bool,
    access: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say that files have moved: references below one prefix go to another, in all history.

    \b
    icelite relocate ocean.icelite file:///old/data/ file:///new/data/
    icelite relocate ocean.icelite oisst/ s3://bucket/oisst/ --dry-run
    """
    done = catalog.open(access).relocate(old_prefix, new_prefix, dry_run=dry_run, check=check)
    if as_json:
        print_json(done)
        return
    line(f"{done.count:,} {'would move' if dry_run else 'moved'} from {done.old_prefix} to {done.new_prefix}")
    for before, after in done.examples:
        line(f"  {before} -> {after}")


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@click.argument("variables", nargs=-1, required=True)
@click.option("--chunks", multiple=True, metavar="DIM=N", help="Length of a chunk; -1 is all of it. May be repeated.")
@click.option("--group", metavar="PATH", help="Group of the variables; the root by default.")
@click.option("--branch", default="main", show_default=True, help="Branch to commit to.")
@click.option("--dask", is_flag=True, help="Read and write blocks at the same time, by dask.")
@click.option("-m", "--message", help="Commit message; by default it says what was copied.")
@access_option
@json_option
def make_native(
    catalog: CatalogArgument,
    variables: tuple[str, ...],
    chunks: tuple[str, ...],
    group: str | None,
    branch: str,
    dask: bool,
    message: str | None,
    access: tuple[str, ...],
    as_json: bool,
) -> None:
    """Copy variables from the files that they refer to into the repository, in other chunks, as one commit.

    \b
    icelite make-native ocean.icelite sst --chunks time=365 --chunks lat=90 --chunks lon=90
    icelite make-native ocean.icelite sst ice --chunks time=-1 --access file:///data/
    """
    import icelite

    with progress_bar("Copying blocks") as progress:
        done = icelite.make_native(
            catalog.open_whole(access),
            list(variables),
            chunks=dict(_length(text) for text in chunks),
            group=group,
            branch=branch,
            message=message,
            dask_options={} if dask else None,
            progress=progress,
        )
    print_json(done) if as_json else line(str(done))


def _length(text: str) -> tuple[str, int]:
    dim, _, length = text.rpartition("=")
    try:
        return dim, int(length)
    except ValueError:
        raise InvalidInputError(f"--chunks {text!r} is not DIM=N", ErrorKind.INVALID_ARGUMENT) from None


COMMANDS = (virtualize, sources, refs, relocate, make_native)
