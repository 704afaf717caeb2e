"""Verbs that bring catalogs into other forms and back: bundle, export, import."""

from __future__ import annotations

import click

from icelite.cli.catalogs import CATALOG, CatalogArgument, access_option, authorizations, json_option, progress_bar
from icelite.cli.output import line, print_json, size


@click.command()
@click.argument("catalog", type=CATALOG, metavar="PATH")
@click.argument("target")
@access_option
@json_option
def bundle(catalog: CatalogArgument, target: str, access: tuple[str, ...], as_json: bool) -> None:
    """Write a new catalog that needs no other file: all history, its chunks in it.

    \b
    icelite bundle ocean.icelite to-mail.icelite
    """
    with progress_bar("Copying chunks") as progress:
        done = catalog.open(access).bundle(target, progress=progress)
    if as_json:
        print_json(done)
    else:
        line(f"wrote {done.path}: {done.chunks:,} chunks ({size(done.bytes)}) from {done.sources:,} sources")


@click.group()
def export() -> None:
    """Write a catalog in another form: kerchunk, zarr, icechunk."""


@export.command("zarr")
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.argument("target")
@click.option("--group", help="Write only what is below this group.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--consolidated", is_flag=True, help="Add consolidated metadata.")
@access_option
@json_option
def export_zarr(
    catalog: CatalogArgument,
    target: str,
    group: str | None,
    overwrite: bool,
    consolidated: bool,
    access: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a snapshot as plain Zarr: a folder, a .zip, or a URL.

    \b
    icelite export zarr ocean.icelite@august august.zarr
    """
    repository = catalog.open(access)
    with progress_bar("Writing Zarr") as progress:
        done = repository.export_zarr(
            target,
            **catalog.names(repository),
            group=group,
            overwrite=overwrite,
            consolidated=consolidated,
            progress=progress,
        )
    if as_json:
        print_json(done)
    else:
        line(f"wrote {done.target}: {done.nodes:,} groups and arrays, {done.chunks:,} chunks, {size(done.bytes)}")


@export.command("kerchunk")
@click.argument("catalog", type=CATALOG, metavar="PATH[@REF]")
@click.argument("target")
@click.option("--json-file", "form", flag_value="json", help="One JSON file (the default).")
@click.option("--parquet", "form", flag_value="parquet", help="A folder of Parquet files.")
@click.option("--zarr-format", type=click.Choice(["2"]), help="Describe Zarr v3 in Zarr v2, for GDAL and Parquet.")
@click.option("--group", help="Write only what is below this group.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@json_option
def export_kerchunk(
    catalog: CatalogArgument,
    target: str,
    form: str | None,
    zarr_format: str | None,
    group: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a snapshot as kerchunk references, with absolute URLs.

    \b
    icelite export kerchunk ocean.icelite ocean.json
    icelite export kerchunk ocean.icelite@august ocean.parq --parquet --zarr-format 2
    """
    from icelite.kerchunk import export_kerchunk as run

    repository = catalog.open()
    with progress_bar("Writing references") as progress:
        run(
            repository,
            target,
            **catalog.names(repository),
            group=group,
            format="parquet" if form == "parquet" else "json",
            zarr_format=2 if zarr_format else None,
            overwrite=overwrite,
            progress=progress,
        )
    print_json({"target": target}) if as_json else line(f"wrote {target}")


@export.command("icechunk")
@click.argument("catalog", type=CATALOG, metavar="PATH")
@click.argument("target")
@access_option
@json_option
def export_icechunk(catalog: CatalogArgument, target: str, access: tuple[str, ...], as_json: bool) -> None:
    """Write the whole history as a new Icechunk repository in a local folder.

    \b
    icelite export icechunk ocean.icelite ocean.icechunk
    """
    from icelite.icechunk import export_icechunk as run

    with progress_bar("Writing snapshots") as progress:
        done = run(catalog.open(access), target, progress=progress)
    print_json(done) if as_json else line(str(done))


@click.group("import")
def import_() -> None:
    """Make a catalog from another form: kerchunk, icechunk."""


@import_.command("kerchunk")
@click.argument("references")
@click.argument("target")
@click.option("--group", help="Group to write; the root by default.")
@click.option("--branch", default="main", show_default=True, help="Branch to commit to.")
@click.option("-m", "--message", help="Commit message.")
@click.option("--root", help="Folder or URL that relative paths start from; by default that of REFERENCES.")
@access_option
@json_option
def import_kerchunk(
    references: str,
    target: str,
    group: str | None,
    branch: str,
    message: str | None,
    root: str | None,
    access: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write kerchunk references, a JSON file or a folder of Parquet files, into a catalog, and commit.

    \b
    icelite import kerchunk ocean.json ocean.icelite
    """
    from icelite.kerchunk import import_kerchunk as run
    from icelite.repository import Repository

    allowed = authorizations(access)
    repository = Repository.open_or_create(target, authorize_virtual_chunk_access=allowed) if allowed else target
    with progress_bar("Reading references") as progress:
        snapshot_id = run(
            references, repository, group=group, branch=branch, message=message, root=root, progress=progress
        )
    print_json({"snapshot_id": snapshot_id}) if as_json else line(f"committed {snapshot_id} to {branch} of {target}")


@import_.command("icechunk")
@click.argument("source")
@click.argument("target")
@json_option
def import_icechunk(source: str, target: str, as_json: bool) -> None:
    """Make a catalog with the whole history of an Icechunk repository in a local folder.

    \b
    icelite import icechunk ocean.icechunk ocean.icelite
    """
    from icelite.icechunk import import_icechunk as run

    with progress_bar("Reading snapshots") as progress:
        done = run(source, target, progress=progress)
    print_json(done) if as_json else line(str(done))


COMMANDS = (bundle, export, import_)
