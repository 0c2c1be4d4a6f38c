"""The app in a process of its own, and clients that send it files."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from paths import ROOT

BOUNDARY = b"----boundary"


@dataclass
class Server:
    """A running app: its process, and its address without the token."""

    process: subprocess.Popen
    host: str
    port: int
    token: str

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, which is kept between requests."""
        return http.client.HTTPConnection(self.host, self.port, timeout=120)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Return the status and the JSON of an answer, on a connection of its own."""
        connection = self.connect()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@contextmanager
def running(model: Path, *arguments: object, errors: IO | None = None, **environment: str) -> Iterator[Server]:
    """Run `joytag app` on a free port; it is killed at the end if it has not ended."""
    line = [sys.executable, "-m", "joytag", "app", "--model", model, "--port", "0", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
    process = subprocess.Popen([*map(str, line)], stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
    assert process.stdout is not None
    try:
        for text in process.stdout:
            if found := re.search(r"Open (http://\S+) in", text):
                address = urlsplit(found[1])
                assert address.hostname
                assert address.port
                yield Server(process, address.hostname, address.port, address.query.removeprefix("token="))
                break
        else:
            raise AssertionError(f"ended with {process.wait()} before it listened")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def form(files: Sequence[bytes], name: str = "files", **fields: str) -> bytes:
    """Return the body of a form with files."""
    parts = [b'form-data; name="%s"\r\n\r\n%s' % (key.encode(), value.encode()) for key, value in fields.items()]
    parts += [
        b'form-data; name="%s"; filename="%d.png"\r\n\r\n%s' % (name.encode(), number, data)
        for number, data in enumerate(files)
    ]
    whole = b"".join(b"--%s\r\nContent-Disposition: %s\r\n" % (BOUNDARY, part) for part in parts)
    return whole + b"--%s--\r\n" % BOUNDARY


def post(connection: http.client.HTTPConnection, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Send a form and return the status and the JSON of the answer."""
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    connection.request("POST", path, body, kind | headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
