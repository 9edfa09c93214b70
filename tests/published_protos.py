"""What is published of the protos: docs/protos.json, their descriptors, which `buf breaking` takes to compare with.

`python tests/published_protos.py` renews it. It refuses a break, whatever the version: the major version of the protos
stands in the name of their package, so whoever means to break something makes `ordersys.core.v2` beside the other.
Needs buf: `pip install '.[test]'`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import published_api

PROTOS = published_api.PROJECT / "protos"
IMAGE = published_api.PROJECT / "docs" / "protos.json"
RENEW = "python tests/published_protos.py"
COMPLAINED = 100
"""The exit code of buf when it found something; any other but 0 is a failure of its own."""


def buf() -> str | None:
    """The program of this very environment, which need not be activated; None when there is none."""
    return shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")


def complaints(*arguments: str) -> list[str]:
    """What buf says against the protos, each as "file: RULE: message"; raises RuntimeError when it cannot say."""
    done = _run(*arguments, "--error-format", "json")
    if done.returncode not in (0, COMPLAINED):
        raise RuntimeError(f"buf {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [f"{each.get('path', '')}: {each['type']}: {each['message']}" for each in found]


def breaks(protos: Path = PROTOS, image: Path = IMAGE) -> list[str]:
    """What callers who generated their code from the image would stumble over in these protos."""
    return complaints("breaking", str(protos), "--against", str(image))


def printed(protos: Path = PROTOS) -> str:
    """The descriptors of the protos and of what they import, as a FileDescriptorSet in JSON."""
    done = _run("build", str(protos), "--exclude-source-info", "--output", "-#format=json")
    if done.returncode:
        raise RuntimeError(f"buf build ended with {done.returncode}: {done.stderr.strip()}")
    return json.dumps(json.loads(done.stdout), indent=1) + "\n"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = buf()
    if command is None:
        raise RuntimeError("buf is not installed: pip install '.[test]'")
    return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60, check=False)


def main() -> int:
    if IMAGE.exists() and (found := breaks(image=IMAGE)):
        print("this breaks callers; make a package ordersys.core.v2 for it:", *found, sep="\n  ", file=sys.stderr)
        return 1
    IMAGE.write_text(printed(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
