"""The committed stubs are what the pinned generator makes of the protos, byte for byte."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import servers

ROOT = Path(__file__).resolve().parents[1]
STUBS = Path("ordersys/core/v1")


def test_the_committed_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        servers.missing("grpcio-tools is not installed: pip install '.[test]'")
    made = subprocess.run(
        [sys.executable, str(ROOT / "protos" / "generate.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    fresh = {path.name: path.read_bytes() for path in (tmp_path / STUBS).iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / STUBS).glob("*_pb2*")}
    assert sorted(fresh) == sorted(committed)
    changed = [name for name in fresh if fresh[name] != committed[name]]
    assert not changed, f"{', '.join(changed)}: run `python protos/generate.py` and commit what it writes"
    assert len(fresh) == 2 * 2 * len(list((ROOT / "protos").rglob("*.proto")))
