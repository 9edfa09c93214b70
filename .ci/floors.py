"""The oldest versions that pyproject.toml allows, as constraints for pip.

python .ci/floors.py > floors.txt && pip install -c floors.txt '.[test]'
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OURS = "ordersys"
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?P<kind>>=|==)\s*(?P<version>[^\s,;]+)\s*(?:;(?P<marker>.*))?"
)


def floors(requirements: Iterable[str]) -> Iterator[str]:
    """One line `name==floor` for each of them; raises ValueError for one that has no floor."""
    for each in requirements:
        if each.startswith(f"{OURS}["):
            continue  # an extra of our own: it is in the list itself
        found = _REQUIREMENT.fullmatch(each.strip())
        if found is None:
            raise ValueError(f"{each!r} has no floor: write NAME>=VERSION")
        marker = f"; {found['marker'].strip()}" if found["marker"] else ""
        yield f"{found['name']}=={found['version']}{marker}"


def main() -> int:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(each for extra in extras for each in extra)]
    print(*dict.fromkeys(floors(wanted)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
