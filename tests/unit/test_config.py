"""icelite.config: prefixes cover whole segments, settings merge by what was given, nothing unsafe is taken in."""

from __future__ import annotations

import json
import pickle

import pytest

from icelite.config import (
    RepositoryConfig,
    StoreConfig,
    VirtualChunkContainer,
    VirtualRefConfig,
    covers,
    longest_covering,
    normalize_prefix,
)
from icelite.credentials import S3Credentials, s3_credentials
from icelite.errors import InvalidInputError
from icelite.storage import ObjectStoreConfig, S3Options, local_filesystem_store, s3_store


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/data/", "s3://bucket/data/"),
        ("s3://", "s3://"),
        ("file:///", "file:///"),
        ("file:///data", "file:///data/"),
    ],
)
def test_prefixes_have_one_spelling(prefix: str, expected: str) -> None:
    assert normalize_prefix(prefix) == expected


@pytest.mark.parametrize("prefix", ["", "bucket", "/data", "s3:/b", "file://data/", "s3://b/../c", "s3://b/\0", "://x"])
def test_what_is_no_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        normalize_prefix(prefix)
    assert caught.value.kind == "storage-config"


@pytest.mark.parametrize(
    ("prefix", "url", "expected"),
    [
        ("s3://bucket/pre/", "s3://bucket/pre/x", True),
        ("s3://bucket/pre/", "s3://bucket/pre", True),
        ("s3://bucket/pre/", "s3://bucket/prefix2/x", False),
        ("s3://bucket/", "s3://bucket2/x", False),
        ("s3://", "s3://any/x", True),
        ("s3://", "file:///x", False),
    ],
)
def test_a_prefix_covers_whole_segments(prefix: str, url: str, expected: bool) -> None:
    assert covers(prefix, url) is expected


def test_the_longest_prefix_wins() -> None:
    prefixes = dict.fromkeys(["s3://b/", "s3://b/a/c/", "s3://b/a/"])
    assert longest_covering(prefixes, "s3://b/a/x") == "s3://b/a/"
    assert longest_covering(prefixes, "s3://c/a/x") is None


def test_a_container_is_named_by_its_prefix_unless_it_has_a_name() -> None:
    assert VirtualChunkContainer("s3://b").name == "s3://b/"
    assert VirtualChunkContainer("s3://b", None, "ocean").name == "ocean"


@pytest.mark.parametrize("name", ["", "a/b", "a\0", "a\\b"])
def test_a_container_name_must_fit_into_a_reference(name: str) -> None:
    with pytest.raises(InvalidInputError):
        VirtualChunkContainer("s3://b", None, name)


def test_a_container_and_its_store_must_fit() -> None:
    with pytest.raises(InvalidInputError) as caught:
        VirtualChunkContainer("s3://b", local_filesystem_store("/data"))
    assert caught.value.kind == "storage-config"
    with pytest.raises(InvalidInputError):
        VirtualChunkContainer("file:///data", s3_store())


@pytest.mark.parametrize(
    "container",
    [
        VirtualChunkContainer("file:///data/", local_filesystem_store("/data/")),
        VirtualChunkContainer("s3://b/", s3_store(region="eu-west-1"), "ocean"),
        VirtualChunkContainer(
            "s3://b/", s3_store(endpoint_url="http://localhost:1", allow_http=True, s3_compatible=True)
        ),
        VirtualChunkContainer("s3://b/"),
    ],
    ids=str,
)
def test_a_container_survives_the_catalog_and_a_pickle(container: VirtualChunkContainer) -> None:
    options = json.loads(json.dumps(container.options()))
    assert VirtualChunkContainer.from_options(container.url_prefix, options, container.name) == container
    assert pickle.loads(pickle.dumps(container)) == container


@pytest.mark.parametrize(
    "options",
    [{"type": "gopher"}, {"type": "s3", "region": 1}, {"type": "s3", "allow_http": 1}, {"type": "local"}, [1]],
)
def test_stored_options_of_the_wrong_type_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        VirtualChunkContainer.from_options("s3://b/", options)
    assert caught.value.kind == "storage-config"


def test_stored_options_of_a_newer_release_are_left_out() -> None:
    container = VirtualChunkContainer.from_options("s3://b/", {"type": "s3", "region": "x", "colour": "blue"})
    assert container.store == ObjectStoreConfig.S3(S3Options(region="x"))


def test_defaults() -> None:
    config = RepositoryConfig.default()
    assert (config.inline_chunk_threshold_bytes, config.busy_timeout_seconds) == (512, 30.0)
    assert config.virtual_chunk_containers is None
    assert config.to_dict() == {}


def test_merge_lays_over_only_what_was_given() -> None:
    stored = RepositoryConfig(inline_chunk_threshold_bytes=1024)
    stored.set_virtual_chunk_container(VirtualChunkContainer("s3://a/"))
    given = RepositoryConfig(
        busy_timeout_seconds=1, virtual_chunk_containers={"s3://b/": VirtualChunkContainer("s3://b/")}
    )
    merged = stored.merge(given)
    assert merged.to_dict() == {"inline_chunk_threshold_bytes": 1024, "busy_timeout_seconds": 1.0}
    assert set(merged.virtual_chunk_containers or {}) == {"s3://a/", "s3://b/"}
    assert set(stored.virtual_chunk_containers or {}) == {"s3://a/"}


def test_containers_are_set_found_and_cleared() -> None:
    config = RepositoryConfig()
    container = VirtualChunkContainer("s3://a/b")
    config.set_virtual_chunk_container(container)
    assert config.get_virtual_chunk_container("s3://a/b") is container
    assert config.get_virtual_chunk_container("s3://a") is None
    config.clear_virtual_chunk_containers()
    assert config.virtual_chunk_containers == {}


def test_the_dictionary_holds_no_container_and_comes_back() -> None:
    config = RepositoryConfig(7, 2.5, {"s3://a/": VirtualChunkContainer("s3://a/")})
    values = json.loads(json.dumps(config.to_dict()))
    assert values == {"inline_chunk_threshold_bytes": 7, "busy_timeout_seconds": 2.5}
    assert RepositoryConfig.from_dict({**values, "colour": "blue"}) == RepositoryConfig(7, 2.5)


@pytest.mark.parametrize(
    "values",
    [
        {"inline_chunk_threshold_bytes": -1},
        {"inline_chunk_threshold_bytes": "512"},
        {"inline_chunk_threshold_bytes": True},
        {"busy_timeout_seconds": float("nan")},
        {"busy_timeout_seconds": -1},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        RepositoryConfig.from_dict(values)
    assert caught.value.kind == "invalid-argument"


def test_a_configuration_pickles_compares_and_shows_what_it_sets() -> None:
    config = RepositoryConfig(7, virtual_chunk_containers={"s3://a/": VirtualChunkContainer("s3://a/")})
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != RepositoryConfig(7)
    assert repr(config).startswith("RepositoryConfig(inline_chunk_threshold_bytes=7, virtual_chunk_containers={")


def test_the_store_first_configuration_becomes_a_container_and_an_authorisation() -> None:
    keys = S3Credentials(access_key_id="AKIDEXAMPLE", secret_access_key="hush")
    refs = VirtualRefConfig.s3_from_config(credentials=keys, endpoint_url="https://s3.example.org", region="eu-west-1")
    config = StoreConfig(virtual_ref_config=refs, inline_chunk_threshold_bytes=9)
    containers = config.repository_config().virtual_chunk_containers or {}
    assert containers["s3://"].store == ObjectStoreConfig.S3(S3Options("eu-west-1", "https://s3.example.org"))
    assert config.repository_config().inline_chunk_threshold_bytes == 9
    assert config.authorizations() == {"s3://": keys}
    assert "hush" not in repr(config)
    assert "AKIDEXAMPLE" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_other_store_first_ways() -> None:
    assert StoreConfig().authorizations() == {}
    assert StoreConfig().repository_config() == RepositoryConfig()
    assert VirtualRefConfig.s3_anonymous(region="us-east-1").credentials == s3_credentials(anonymous=True)
    assert VirtualRefConfig.s3_from_env().credentials == s3_credentials()
    with pytest.raises(InvalidInputError) as caught:
        VirtualRefConfig.s3_from_config(credentials="AKIDEXAMPLE")  # type: ignore[arg-type]
    assert caught.value.kind == "invalid-credentials"
