"""Reference files made to exhaust or confuse whoever imports them: refused with icelite's errors, in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icelite import Repository, StorageConfig
from icelite.errors import ErrorKind, InvalidInputError
from icelite.kerchunk import write_references

GROUP = '{"zarr_format":2}'
LIMITED = """
    import resource, sys
    from pathlib import Path
    import icelite
    from icelite import Repository, StorageConfig
    from icelite.kerchunk import write_references
    import numpy, pyarrow.parquet, numcodecs, jinja2

    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    session = Repository.create(StorageConfig.memory()).writable_session("main")
    for name in sys.argv[1:]:
        try:
            print(name, write_references(name, session.store))
        except icelite.IceliteError as error:
            print(name, error.kind, len(error.message))
"""


def array(**changes: Any) -> str:
    content = {"zarr_format": 2, "shape": [2], "chunks": [1], "dtype": "|u1", "fill_value": 0, "order": "C"}
    return json.dumps({**content, "compressor": None, "filters": None, **changes})


def references(**entries: Any) -> dict[str, Any]:
    return {"version": 1, "refs": {".zgroup": GROUP, "b/.zarray": array(), **entries}}


def nested(depth: int) -> str:
    expression = "'xxxxxxxxxxxxxxxx'"
    for _ in range(depth):
        expression = f"t(a={expression})"
    return "{{" + expression + "}}"


def generator(**changes: Any) -> dict[str, Any]:
    content = {"key": "b/{{i}}", "url": "/tmp/x{{i}}", "offset": "0", "length": "1", "dimensions": {"i": {"stop": 2}}}
    return {"version": 1, "refs": references()["refs"], "gen": [{**content, **changes}]}


BOMBS: dict[str, Any] = {
    "text that doubles": {**references(**{"b/0": [nested(9), 0, 1]}), "templates": {"t": "{{a}}" * 8}},
    "a template that calls itself": {**references(**{"b/0": ["{{t(a=t)}}", 0, 1]}), "templates": {"t": "{{a(a=a)}}"}},
    "a long text": references(**{"b/0": ["{{ 'a' * 8000000000 }}", 0, 1]}),
    "a filter": references(**{"b/0": ["{{ 'a'|center(3000000000) }}", 0, 1]}),
    "a power": references(**{"b/0": ["{{ 10 ** 10 ** 9 }}", 0, 1]}),
    "a loop": references(**{"b/0": ["{{1}}{% for a in range(99999999) %}{% endfor %}", 0, 1]}),
    "a wide format": references(**{"b/0": ["{{ '%999999999d' % 1 }}", 0, 1]}),
    "a generator": generator(dimensions={"i": {"stop": 49_999_999}}),
    "an endless generator": generator(dimensions={"i": {"stop": 2**63}}),
    "many generators": generator() | {"gen": [generator(dimensions={"i": {"stop": 10**5}})["gen"][0]] * 10_000},
    "a number as metadata": {"version": 1, "refs": {".zgroup": 9_000_000_000}},
    "a huge number as metadata": {"version": 1, "refs": {".zgroup": 10**20}},
    "a number as a chunk": references(**{"b/0": 9_000_000_000}),
    "a path of many segments": references(**{"/".join(["a"] * 100_000) + "/.zgroup": GROUP}),
    "a chunk below many segments": references(**{"/".join(["a"] * 100_000) + "/0": "x"}),
    "many dimensions": references(**{"b/.zarray": array(shape=[1] * 100_000, chunks=[1] * 100_000), "b/0": "x"}),
    "a long value": references(**{"b/0": [["x" * 10_000_000], 0, 1]}),
    "deep lists": None,  # json.dumps refuses to write it
    "deep objects": None,
    "a number of many digits": None,
}
RAW = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"version":1,"refs":{".zgroup":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}}",
    "a number of many digits": b'{"version":1,"refs":{".zgroup":' + b"9" * 100_000 + b"}}",
}


def test_bombs_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    for number, (name, content) in enumerate(BOMBS.items()):
        (tmp_path / f"{number}.json").write_bytes(RAW.get(name) or json.dumps(content).encode())
    (tmp_path / "zeros.json.gz").write_bytes(gzip.compress(b" " * (150 << 20)))
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    code = textwrap.dedent(LIMITED)
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == files, done.stderr[-2000:]
    known = {ErrorKind.INVALID_REFERENCES, ErrorKind.INVALID_PATH, ErrorKind.BAD_METADATA, "over-budget"}
    names = list(BOMBS)
    for file, kind, *size in lines:
        name = names[int(Path(file).stem)] if Path(file).stem.isdigit() else file
        assert kind in known, name
        assert int(size[0]) < 5_000, name


@pytest.mark.parametrize(
    "value",
    [
        *[0, 1, -1, 10**20, 1.5, float("nan"), float("inf"), True, False, None, "base64:%", {1: {2}}, [], [[]]],
        *[["x", 0], ["x", 0, 1, 2], [0, 0, 1], [["x"], 0, 1], [{}, 0, 1], [None, 0, 1], ["", 0, 1]],
        *[["x", -1, 1], ["x", 0, -1], ["x", 0, True], ["x", 0.0, 1], ["x", 0, "1"], ["x", None, None]],
        *[["x", 2**63, 1], ["x", 2**63 - 1, 1], ["x", 0, 10**30]],
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["b/0", "b/.zarray", ".zgroup", ".zattrs", ".zmetadata"])
def test_values_of_a_wrong_type_are_refused(key: str, value: Any) -> None:
    session = Repository.create(StorageConfig.memory()).writable_session("main")
    with pytest.raises(InvalidInputError):
        write_references(references(**{key: value}), session.store, root="/tmp")
    assert not session.has_uncommitted_changes


# -- Parquet -----------------------------------------------------------------------------------------------------


def folder(path: Path, columns: dict[str, Any], record: str = "refs.0.parq", **changes: Any) -> str:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    described = {".zgroup": {"zarr_format": 2}, "b/.zarray": json.loads(array(**changes.pop("array", {})))}
    (path / "b").mkdir(parents=True)
    (path / ".zmetadata").write_text(json.dumps({"metadata": described, "record_size": 10, **changes}))
    parquet.write_table(pa.table(columns), path / "b" / record, compression="zstd")
    return str(path)


def columns(count: int = 2, **changes: Any) -> dict[str, Any]:
    content = {"path": ["/tmp/x"] * count, "offset": [0] * count, "size": [1] * count, "raw": [None] * count}
    return {**content, **changes}


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (columns(size=np.array([2**63] * 2, dtype=np.uint64)), {"record_size": 2**70}),
        (columns(), {"record": "refs.999999999999999999.parq"}),
        (columns(), {"record": "refs.999999999999999999.parq", "record_size": 10**30}),
        (columns(), {"array": {"shape": [2**40, 2**40], "chunks": [1, 1]}}),
        (columns(), {"array": {"shape": [10**30], "chunks": [1]}, "record": "refs.99999999999999999.parq"}),
        (columns(0), {"record": "refs.99999999999999999.parq", "record_size": 10**30}),
        (columns(11), {}),
        (columns(path=[[1], [2]]), {}),
        (columns(offset=["0", "0"]), {}),
        (columns(offset=np.array([2**64 - 1] * 2, dtype=np.uint64)), {}),
        (columns(size=[-1, -1]), {}),
        (columns(raw=[[1], [2]]), {}),
        (columns(raw=[b"base64:%"] * 2), {}),
    ],
)
def test_parquet_that_cannot_be_is_refused(content: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    session = Repository.create(StorageConfig.memory()).writable_session("main")
    with pytest.raises(InvalidInputError):
        write_references(folder(tmp_path / "refs", content, **changes), session.store)
    assert not session.has_uncommitted_changes


def test_parquet_bombs_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    count = 10_000_000
    many = folder(tmp_path / "rows", columns(), record_size=count, array={"shape": [count]})
    nulls = pa.nulls(count, pa.string())
    table = pa.table({"path": nulls, "offset": pa.nulls(count, pa.int64()), "size": pa.nulls(count, pa.int64())})
    parquet.write_table(table, tmp_path / "rows" / "b" / "refs.0.parq", compression="zstd")
    long = folder(tmp_path / "texts", columns(), record_size=10_000, array={"shape": [10_000]})
    repeated = pa.array([b"x" * 1_000_000] * 10, pa.binary()).dictionary_encode()
    raw = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, dtype=np.int32)), repeated.dictionary)
    parquet.write_table(pa.table({"raw": raw}), tmp_path / "texts" / "b" / "refs.0.parq", compression="zstd")
    code = textwrap.dedent(LIMITED)
    done = subprocess.run([sys.executable, "-c", code, many, long], capture_output=True, text=True, check=False)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [many, "invalid-references"],
        [long, "invalid-references"],
    ], done.stderr[-2000:]
