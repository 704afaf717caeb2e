"""The errors of the gates. Each ends with the line of code that would open the gate, so it can be pasted.

Prefixes and paths may come from a stranger's catalog: in code they stand as ASCII literals, so that nothing in them
can end the literal or disguise itself.
"""

from __future__ import annotations

from icelite.errors import ErrorKind, InvalidInputError, shown

NAMES = 20  # of containers that there are
LONGEST_PREFIX = 1_000  # characters, in a line of code
_XARRAY = "(xarray.open_dataset takes the same keyword)"


def literal(text: str) -> str:
    """A Python string literal of ASCII characters, in double quotes where that needs no escape."""
    quoted = ascii(text)
    return quoted if '"' in text or "'" in text else f'"{quoted[1:-1]}"'


def expression(prefix: str) -> str:
    """The Python expression that authorises a prefix: a proposal, the caller may have other credentials."""
    if prefix.startswith("file://"):
        return "icelite.LocalFileSystemAccess"
    if prefix.startswith(("https://", "http://")):
        return "icelite.HttpAccess"
    if not prefix.startswith("s3://"):
        return "icelite.credentials.filesystem_access()"
    return "icelite.s3_credentials(from_env=True)"


def narrow_prefix(url: str) -> str:
    """The folder of a ``file://`` URL, one above it where that is very long; the bucket or host of any other one."""
    if url.startswith("file://"):
        return _folder(url)
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


def unauthorised(url: str, prefix: str, catalog: str | None, chunk: str | None) -> InvalidInputError:
    """The caller did not authorise any prefix that covers a URL."""
    return InvalidInputError(
        f"{_subject(url, chunk)} may not be read: nothing passed on open covers it; if you trust this catalog with"
        f" it: {_open_line(catalog, prefix)} {_XARRAY}",
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    )


def unauthorised_source(url: str) -> InvalidInputError:
    """The caller names a source and authorised no prefix that covers it."""
    prefix = narrow_prefix(url)
    public = ", with icelite.s3_credentials(anonymous=True) for a public bucket" if url.startswith("s3://") else ""
    return InvalidInputError(
        f"source {shown(url)} may not be read: nothing that was passed covers it; add"
        f" authorize_virtual_chunk_access={{{literal(prefix)}: {expression(prefix)}}}{public}",
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    )


def no_container(url: str, catalog: str | None, chunk: str | None = None) -> InvalidInputError:
    """No container covers a URL."""
    prefix = narrow_prefix(url)
    container = f"{literal(prefix)}: icelite.VirtualChunkContainer({literal(prefix)})"
    config = f"config=icelite.RepositoryConfig(virtual_chunk_containers={{{container}}})"
    return InvalidInputError(
        f"{_subject(url, chunk)} is covered by no virtual chunk container; to add one:"
        f" {_open_line(catalog, prefix, config)}",
        ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
    )


def unknown_container(name: str, url: str, known: list[str]) -> InvalidInputError:
    """A ``vcc://`` reference names a container that is not known."""
    return InvalidInputError(
        f"virtual reference {shown(url)} names the container {shown(name)}, which this repository does not have; it"
        f" has {', '.join(map(repr, known[:NAMES])) or 'none'}; pass it in the RepositoryConfig:"
        f" icelite.VirtualChunkContainer(url_prefix, name={literal(name[:LONGEST_PREFIX])})",
        ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
    )


def outside(reference: str, path: str, directory: str, chunk: str | None) -> InvalidInputError:
    """A relative reference leaves the catalog's directory through a symbolic link."""
    return InvalidInputError(
        f"{_subject(reference, chunk)} leads through a symbolic link to {shown(path)}, outside the catalog's directory"
        f" {directory!r}; put the file itself there, or reference it as 'file://...' and authorise its directory",
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    )


def hidden(url: str, catalog: str | None, chunk: str | None) -> InvalidInputError:
    """A relative reference leads to a dot file, or through a dot folder."""
    prefix = _folder(url)
    return InvalidInputError(
        f"{_subject(url, chunk)} is a hidden file or in a hidden folder beside the catalog, where keys may be, and"
        f" is not read unasked; if you trust this catalog with it: {_open_line(catalog, prefix)} {_XARRAY}",
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    )


def linked(url: str, path: str, catalog: str | None, chunk: str | None) -> InvalidInputError:
    """An authorised URL leads through a symbolic link to a folder that was not authorised."""
    prefix = _folder(f"file://{path}")
    return InvalidInputError(
        f"{_subject(url, chunk)} leads through a symbolic link to {shown(path)}, where nothing was authorised; add that"
        f" directory to what you pass on open: {_open_line(catalog, prefix)} {_XARRAY}",
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    )


def _folder(url: str) -> str:
    return url[: LONGEST_PREFIX + 1].rpartition("/")[0] + "/"


def _subject(url: str, chunk: str | None) -> str:
    return f"virtual reference {shown(url)}" if chunk is None else f"chunk {shown(chunk)}: its source {shown(url)}"


def _open_line(catalog: str | None, prefix: str, config: str | None = None) -> str:
    first = "storage" if catalog is None else literal(catalog)
    grant = f"authorize_virtual_chunk_access={{{literal(prefix)}: {expression(prefix)}}}"
    return f"icelite.Repository.open({', '.join(filter(None, (first, config, grant)))})"
