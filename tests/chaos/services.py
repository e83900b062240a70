"""What accidents happen to besides drivers: an S3 server, a Prefect server and a Ray cluster, each started at its first use."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path

import s3fs

from tests.chaos.test_cluster import Cluster
from tests.conftest import free_port

PATIENCE_SECONDS = 120.0


class Service:
    """A server in a process of its own that can be killed and started again on its port."""

    def __init__(self, command: list[str], path: str, log: Path, **environment: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [*command, str(self.port)]
        self._asked, self._log = self.url + path, log
        self._environment = os.environ | environment
        self.start()

    def start(self) -> None:
        """Return once it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self._log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, f"{self._command} does not answer"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self._asked, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Services:
    """All of them, for the time of a `with`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Services":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def s3(self) -> Service:
        """moto, with one bucket named `chaos`."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
        service = Service(command, "/", self._folder / "s3.log")
        self._stack.callback(service.kill)
        s3fs.S3FileSystem(endpoint_url=service.url, key="test", secret="testtest").mkdir("chaos")
        return service

    @cached_property
    def prefect(self) -> Service:
        """The server that `olmo2 run` starts."""
        command = [sys.executable, "-m", "flows.server.guarded_server", "--port"]
        home = {"PREFECT_HOME": str(self.prefect_home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        service = Service(command, "/api/health", self._folder / "prefect.log", PREFECT_UI_ENABLED="0", **home)
        self._stack.callback(service.kill)
        return service

    @property
    def prefect_home(self) -> Path:
        return self._folder / "prefect"

    @cached_property
    def ray(self) -> Cluster:
        """A head without cores and two nodes with one each."""
        cluster = Cluster(nodes=2)
        self._stack.callback(cluster.ray.shutdown)
        return cluster
