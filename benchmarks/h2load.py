"""The load of every comparison: h2load, a generator in C (https://nghttp2.org/documentation/h2load.1.html).

It counts an answer by its HTTP status alone: whoever uses it asks the services afterwards what they hold.
"""

import shutil
import statistics
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 8
WARMUP_SECONDS = 1


@dataclass(frozen=True)
class Load:
    """What came of one run; times in milliseconds."""

    per_second: float
    p50: float
    p99: float


def grpc(address: str, method: str, message: bytes, callers: int, seconds: int) -> Load:
    """`callers` calls of /package.Service/Method at a time, over few connections, as services do."""
    body = (
        struct.pack(">BI", 0, len(message)) + message
    )  # https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
    headers = ["content-type: application/grpc", "te: trailers"]
    return _run(f"http://{address}{method}", body, headers, callers, seconds)


def http(address: str, path: str, body: bytes | None, callers: int, seconds: int) -> Load:
    """`callers` HTTP/1.1 requests at a time, each over a connection of its own, which is kept."""
    return _run(f"http://{address}{path}", body, ["content-type: application/json"], callers, seconds, "--h1")


def _run(url: str, body: bytes | None, headers: list[str], callers: int, seconds: int, *options: str) -> Load:
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is missing (Debian and Ubuntu: apt-get install nghttp2-client)")
    connections = callers if "--h1" in options else min(callers, CONNECTIONS)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = ["h2load", "-c", str(connections), "-m", str(callers // connections), "-D", str(seconds)]
        command += ["--warm-up-time", str(WARMUP_SECONDS), "--log-file", str(log), *options]
        command += [part for header in headers for part in ("-H", header)]
        if body is not None:
            data = Path(folder) / "body"
            data.write_bytes(body)
            command += ["-d", str(data)]
        done = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=seconds + 60)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    cut_off = sum(status == "0" for _, status, _ in rows)  # under way when the time was over
    if cut_off <= callers:
        rows = [row for row in rows if row[1] != "0"]
    wrong = {status for _, status, _ in rows} - {"200", "201"}
    if wrong or not rows:
        raise SystemExit(f"{url} answered {', '.join(sorted(wrong)) or 'nothing'}:\n{done.stdout}{done.stderr}")
    times = sorted(int(duration) / 1000 for _, _, duration in rows)
    return Load(len(rows) / seconds, statistics.median(times), times[int(len(times) * 0.99)])
