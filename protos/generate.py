"""Generate the Python stubs from the protos: `python protos/generate.py [OUTPUT_FOLDER]`.

Needs the pinned generator: `pip install '.[test]'`. The stubs are committed; a test regenerates and compares them.
"""

import shutil
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent


def generate(output: Path) -> None:
    """Write `ordersys/core/v1/*_pb2*.py[i]` below `output`; raises SystemExit when the compiler refuses the protos."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    plugins = [f"--plugin={name}={_beside_python(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", *plugins]
    arguments += [f"--{kind}_out={output}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main([*arguments, *sources]) != 0:
        raise SystemExit("protoc refused the protos, see above")


def _beside_python(name: str) -> str:
    """The plugin of this very environment, which need not be activated."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is not installed: pip install -e '.[test]'")
    return found


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent)
