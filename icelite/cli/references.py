"""Verbs about references into other files: virtualize, template, update, sources, refs, relocate, make-native."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from icelite.cli.catalogs import CATALOG, CatalogArgument, access_option, authorizations, json_option, progress_bar
from icelite.cli.output import line, print_json, size, table
from icelite.errors import ErrorKind, InvalidInputError

Command = TypeVar("Command", bound=Callable[..., Any])

LEFT_OUT = 3  # exit code of an update that left files out


def policy_options(**defaults: str) -> Callable[[Command], Command]:
    """The options that say what to do with files that are not simply new."""
    kinds = {
        "late": (["raise", "insert", "skip"], "Files that belong before or between others."),
        "changed": (["raise", "replace", "skip"], "Files that changed since they were added."),
        "duplicate": (["raise", "newest", "skip"], "Files with the same steps as another."),
        "misfit": (["raise", "skip"], "Files that do not fit the others."),
        "broken": (["raise", "skip"], "Files that cannot be read."),
        "dropped": (["skip", "insert"], "Files that were taken out before."),
    }

    def decorate(command: Command) -> Command:
        for kind, (choices, text) in reversed(kinds.items()):
            default = defaults.get(kind, choices[0])
            option = click.option(
                f"--on-{kind}", type=click.Choice(choices), default=default, show_default=True, help=text
            )
            command = option(command)
        more = (
            click.option("--prefer", multiple=True, metavar="PATTERN", help="Names of the newest, the best first."),
            click.option(
                "--missing",
                type=click.Choice(["raise", "fill"]),
                default="raise",
                show_default=True,
                help="Variables that a file lacks.",
            ),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        )
        for option in reversed(more):
            command = option(command)
        return command

    return decorate


def show_summary(done: Any, as_json: bool) -> None:
    """Print what a call did."""
    if as_json:
        print_json(done)
        return
    for text in str(done).splitlines():
        line(text)


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
@policy_options()
@click.option("--skip-broken", is_flag=True, help="The same as --on-broken skip.")
@click.option("--region", type=click.Choice(["auto"]), help="Fill a template: each file goes where its labels are.")
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
    prefer: tuple[str, ...],
    dry_run: bool,
    region: Literal["auto"] | None,
    no_copy: bool,
    on_unreadable: Literal["skip", "raise"],
    workers: int | None,
    message: str | None,
    access: tuple[str, ...],
    as_json: bool,
    **policy: Any,
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
            prefer=prefer or None,
            dry_run=dry_run,
            region=region,
            **policy,
            on_unreferenceable="raise" if no_copy else "copy",
            on_unreadable=on_unreadable,
            workers=workers,
            message=message,
            authorize_virtual_chunk_access=authorizations(access),
            progress=progress,
        )
    show_summary(done, as_json)


@click.command()
@click.argument("catalog", metavar="CATALOG")
@click.argument("sample")
@click.option("--concat-dim", required=True, metavar="NAME", help="Dimension that the steps are along, such as time.")
@click.option("--from", "start", required=True, metavar="TIME", help="The first step, such as 2024-01-01T12.")
@click.option("--to", "end", required=True, metavar="TIME", help="The last step.")
@click.option("--every", default="1D", show_default=True, metavar="FREQ", help="As pandas has it: 1D, 6h, MS, ...")
@click.option("--group", metavar="PATH", help="Group to write; the root by default.")
@click.option("--branch", default="main", show_default=True, help="Branch to commit to.")
@click.option("--drop", multiple=True, metavar="VARIABLE", help="Leave a variable out. May be repeated.")
@click.option("--load", multiple=True, metavar="VARIABLE", help="Store a variable's values. May be repeated.")
@click.option("--fill", multiple=True, metavar="NAME=VALUE", help="What empty steps of a variable read as.")
@click.option("-m", "--message", help="Commit message; by default it says what was made.")
@access_option
@json_option
def template(
    catalog: str,
    sample: str,
    concat_dim: str,
    start: str,
    end: str,
    every: str,
    group: str | None,
    branch: str,
    drop: tuple[str, ...],
    load: tuple[str, ...],
    fill: tuple[str, ...],
    message: str | None,
    access: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a group of full length with nothing in it, as one file says it; virtualize --region auto fills it.

    \b
    icelite template ocean.icelite data/20240101.nc --concat-dim time --from 2024-01-01T12 --to 2024-12-31T12
    icelite virtualize 'data/202407*.nc' -o ocean.icelite --concat-dim time --region auto
    """
    import icelite

    snapshot_id = icelite.template(
        catalog,
        sample,
        concat_dim=concat_dim,
        index=_times(start, end, every),
        fill_value=dict(_fill_value(text) for text in fill),
        group=group,
        branch=branch,
        drop_variables=list(drop) or None,
        loadable_variables=list(load) or None,
        message=message,
        authorize_virtual_chunk_access=authorizations(access),
    )
    print_json({"snapshot_id": snapshot_id}) if as_json else line(f"snapshot {snapshot_id}: a template to be filled")


def _times(start: str, end: str, every: str) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    try:
        return pd.date_range(start, end, freq=every)
    except ValueError as error:
        raise InvalidInputError(
            f"--from {start} --to {end} --every {every} are no times: {error}", ErrorKind.INVALID_ARGUMENT
        ) from error


def _fill_value(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise InvalidInputError(f"--fill {text!r} is not NAME=VALUE", ErrorKind.INVALID_ARGUMENT) from None


@click.command()
@click.argument("catalog", metavar="CATALOG")
@click.argument("sources", metavar="[FILES]", nargs=-1)
@click.option("--replace", "replaced", multiple=True, metavar="FILE", help="Only put this file where it belongs.")
@click.option("--drop", "dropped", multiple=True, metavar="FILE|LABEL", help="Only take this out.")
@click.option("--concat-dim", metavar="NAME", help="The dimension, if the catalog does not say it.")
@click.option("--group", metavar="PATH", help="Group to write; the root by default.")
@click.option("--branch", default="main", show_default=True, help="Branch to commit to.")
@policy_options(late="insert", changed="replace", duplicate="newest", misfit="skip", broken="skip")
@click.option("--workers", type=int, metavar="N", help="Processes that read files; by default one a core.")
@click.option("-m", "--message", help="Commit message; by default it says what was done.")
@access_option
@json_option
def update(
    catalog: str,
    sources: tuple[str, ...],
    replaced: tuple[str, ...],
    dropped: tuple[str, ...],
    concat_dim: str | None,
    prefer: tuple[str, ...],
    workers: int | None,
    access: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Bring a catalog up to date with its files, in one snapshot: add, insert late ones, replace changed ones.

    FILES are paths, URLs, or quoted patterns of them; by default what the catalog was made of. What does not fit or
    cannot be read is left out and listed; the exit code is 3 then. With --replace or --drop only that is done.

    \b
    icelite update ocean.icelite
    icelite update ocean.icelite 'data/*.nc' --prefer '*_final.nc'
    icelite update ocean.icelite --drop 2024-08-17 --drop data/day3.nc
    """
    import icelite

    common = {name: options[name] for name in ("group", "branch", "message", "dry_run")}
    common |= {"authorize_virtual_chunk_access": authorizations(access)}
    dimension = {} if concat_dim is None else {"concat_dim": concat_dim}
    if sum(map(bool, (sources, replaced, dropped))) > 1:
        raise click.UsageError("FILES, --replace and --drop exclude each other: each is a snapshot of its own")
    if dropped:
        show_summary(icelite.drop(catalog, list(dropped), **common, **dimension), as_json)
        return
    with progress_bar("Reading files") as progress:
        how: dict[str, Any] = {**common, **dimension, "workers": workers, "progress": progress}
        if replaced:
            done = icelite.replace(catalog, list(replaced), **how)
        else:
            how |= {**options, "prefer": prefer or None}
            done = icelite.update(catalog, list(sources) or None, **how)
    show_summary(done, as_json)
    if done.left_out:
        sys.exit(LEFT_OUT)


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


COMMANDS = (virtualize, template, update, sources, refs, relocate, make_native)
