"""icelite.credentials: one way at a time, and never a secret in what is printed."""

from __future__ import annotations

import pickle
import traceback
from datetime import UTC, datetime

import pytest

from icelite.credentials import (
    AnyCredential,
    LocalFileSystemAccess,
    S3Credentials,
    S3StaticCredentials,
    containers_credentials,
    s3_anonymous_credentials,
    s3_credentials,
    s3_from_env_credentials,
    s3_refreshable_credentials,
    s3_static_credentials,
)
from icelite.errors import InvalidInputError
from icelite.storage import S3Options

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "hush/secret", "token+hush"
STATIC = S3StaticCredentials(KEY, SECRET, TOKEN, datetime(2030, 1, 1, tzinfo=UTC))


def fetch_keys() -> S3StaticCredentials:
    return STATIC


ALL: list[AnyCredential] = [
    STATIC,
    S3Credentials(access_key_id=KEY, secret_access_key=SECRET, session_token=TOKEN),
    s3_static_credentials(access_key_id=KEY, secret_access_key=SECRET, session_token=TOKEN),
    s3_credentials(access_key_id=KEY, secret_access_key=SECRET, endpoint_url="https://s3.example.org"),
    s3_refreshable_credentials(fetch_keys, scatter_initial_credentials=True),
    s3_anonymous_credentials(),
    s3_from_env_credentials(),
    LocalFileSystemAccess,
]


@pytest.mark.parametrize("credential", ALL, ids=lambda c: type(c).__name__)
def test_nothing_printed_holds_a_secret(credential: AnyCredential) -> None:
    shown = f"{credential} {credential!r} {credential:}"
    assert not any(secret in shown for secret in (KEY, SECRET, TOKEN))


@pytest.mark.parametrize("credential", ALL, ids=lambda c: type(c).__name__)
def test_credentials_pickle(credential: AnyCredential) -> None:
    assert pickle.loads(pickle.dumps(credential)) == credential


def test_the_environment_is_the_default() -> None:
    assert s3_credentials() == s3_credentials(from_env=True) == S3Credentials.FromEnv()


def test_each_way() -> None:
    assert s3_credentials(anonymous=True) == S3Credentials.Anonymous()
    keys = s3_credentials(access_key_id=KEY, secret_access_key=SECRET)
    assert keys == S3Credentials.Static(S3StaticCredentials(KEY, SECRET))
    assert s3_credentials(get_credentials=fetch_keys) == S3Credentials.Refreshable(fetch_keys)
    assert s3_refreshable_credentials(fetch_keys, scatter_initial_credentials=True).current == STATIC


def test_where_the_service_is_goes_with_the_credentials() -> None:
    found = s3_credentials(anonymous=True, region="eu-west-1", endpoint_url="http://localhost:9000", allow_http=True)
    assert found == S3Credentials.Anonymous(S3Options("eu-west-1", "http://localhost:9000", allow_http=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"access_key_id": KEY},
        {"secret_access_key": SECRET},
        {"session_token": TOKEN},
        {"access_key_id": KEY, "secret_access_key": SECRET, "anonymous": True},
        {"access_key_id": KEY, "secret_access_key": SECRET, "from_env": True},
        {"anonymous": True, "from_env": True},
        {"anonymous": True, "get_credentials": fetch_keys},
        {"get_credentials": "fetch_keys"},
        {"access_key_id": KEY, "secret_access_key": SECRET, "expires_after": datetime(2030, 1, 1)},  # noqa: DTZ001
    ],
    ids=lambda arguments: "+".join(arguments),
)
def test_half_a_way_or_two_are_refused_without_repeating_a_secret(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        s3_credentials(**arguments)  # type: ignore[arg-type]
    assert caught.value.kind == "invalid-credentials"
    shown = "".join(traceback.format_exception_only(caught.value))
    assert not any(secret in shown for secret in (KEY, SECRET, TOKEN))


@pytest.mark.parametrize(
    "endpoint_url",
    ["http://localhost:9000", "localhost:9000", "ftp://x", "https://", "https://u:pw@host", "https://host?x=1"],
)
def test_an_unusable_endpoint_is_refused(endpoint_url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        s3_credentials(endpoint_url=endpoint_url)
    assert caught.value.kind == "storage-config"
    assert "pw" not in str(caught.value)


def test_credentials_must_fit_their_prefix() -> None:
    good: dict[str, AnyCredential | None] = {
        "s3://b/": STATIC,
        "s3://c/": None,
        "file:///data/": LocalFileSystemAccess,
        "file:///other/": None,
    }
    assert containers_credentials(good) == good


@pytest.mark.parametrize(
    ("prefix", "credential"),
    [("s3://b/", LocalFileSystemAccess), ("file:///d/", STATIC), ("gs://b/", STATIC), ("/data", None), ("s3://b", KEY)],
)
def test_a_credential_of_the_wrong_kind_is_refused(prefix: str, credential: AnyCredential) -> None:
    with pytest.raises(InvalidInputError) as caught:
        containers_credentials({prefix: credential})
    assert caught.value.kind == "invalid-credentials"
    assert KEY not in str(caught.value)
