"""A real S3 server for tests: Ceph's RADOS gateway over one monitor and one in-memory object daemon, on loopback.

Debian: `apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common`. A missing program is an error,
never a skip: a store that was not tried on a real server was not tried.
"""

import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.conftest import free_port

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "client.gateway": {"mon": "allow rw", "osd": "allow rwx"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}
"""What each part of the cluster may do."""

START_SECONDS = 120.0


@dataclass(frozen=True)
class S3:
    """Where the server is, and an account on it."""

    endpoint: str
    key: str = "test"
    secret: str = "testtest"

    def environment(self) -> dict[str, str]:
        """Variables by which any S3 client finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def gateway() -> Iterator[S3]:
    """Start the three daemons, and stop them at the end. Raises RuntimeError if one is missing or does not start."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}; install radosgw ceph-mon ceph-osd ceph-common")
    # Ceph's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="ceph-"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster.s3
    finally:
        cluster.stop()
        shutil.rmtree(folder)


class Cluster:
    """A monitor, an object daemon and a gateway, as children of this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.keyring = folder / "keyring"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.fsid = str(uuid.uuid4())
        self.monitor = f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
        self.port = free_port()
        self.s3 = S3(f"http://127.0.0.1:{self.port}")

    def start(self) -> None:
        (self.folder / "ceph.conf").write_text(self._configuration())
        for name, caps in CAPABILITIES.items():
            granted = [part for service, cap in caps.items() for part in ("--cap", service, cap)]
            create = [] if self.keyring.exists() else ["--create-keyring"]
            self._call("ceph-authtool", *create, str(self.keyring), "--gen-key", "-n", name, *granted)
        map = str(self.folder / "monmap")
        self._call("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", self.monitor, map)
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", map, "--keyring", str(self.keyring))
        self._daemon("ceph-mon", "-i", "a")
        (self.folder / "osd").mkdir()
        disk = str(uuid.uuid4())
        self._call("ceph", "osd", "new", disk)
        self._call("ceph", "auth", "import", "-i", str(self.keyring))
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.gateway")
        self._wait_for_gateway()
        self._call(
            *("radosgw-admin", "user", "create", "--uid=test", "--display-name=test"),
            *(f"--access-key={self.s3.key}", f"--secret-key={self.s3.secret}"),
        )

    def stop(self) -> None:
        """The gateway first, what it stands on last; nothing is kept, so nobody is asked to finish its work."""
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()

    def _configuration(self) -> str:
        here = self.folder
        return f"""
[global]
fsid = {self.fsid}
mon host = {self.monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {self.keyring}
run dir = {here}
admin socket = {here}/$name.asok
log file = {here}/$name.log
mon data = {here}/mon
osd data = {here}/osd
rgw data = {here}/gateway
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
rgw frontends = beast endpoint=127.0.0.1:{self.port}
rgw enable usage log = false
rgw thread pool size = 32
"""

    def _call(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self.folder / "ceph.conf"), *arguments]
        if program == "monmaptool":
            command = [program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")

    def _daemon(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self.folder / "ceph.conf"), "-f", *arguments]
        with (self.folder / f"{program}.out").open("wb") as output:
            self.daemons[program] = subprocess.Popen(command, stdout=output, stderr=output)

    def _wait_for_gateway(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            ended = {name: daemon.poll() for name, daemon in self.daemons.items() if daemon.poll() is not None}
            if ended or time.monotonic() > deadline:
                told = "\n".join(file.read_text(errors="replace")[-1500:] for file in self.folder.glob("*.out"))
                raise RuntimeError(f"no S3 answer on port {self.port}; ended daemons: {ended}\n{told}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urlopen(self.s3.endpoint, timeout=2).close()
        except HTTPError:
            return True
        except (URLError, OSError):
            return False
        return True
