"""Certificates as files for tests: sound ones, and those that no door may open for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ordersys.core.tls import Files
from ordersys.operate import issuing
from ordersys.operate.issuing import Pair, Role

Valid = tuple[datetime, datetime]


def around(begin: float, end: float) -> Valid:
    """So many days from now, negative = ago."""
    now = datetime.now(UTC)
    return now + timedelta(days=begin), now + timedelta(days=end)


NOW, EXPIRED, FUTURE = around(-1, 30), around(-20, -1), around(1, 30)


@dataclass(frozen=True)
class Authority:
    """A CA in a folder of its own."""

    folder: Path
    pair: Pair

    @classmethod
    def at(cls, folder: Path, valid: Valid = NOW) -> "Authority":
        folder.mkdir(parents=True, exist_ok=True)
        pair = issuing.authority(f"test CA {folder.name}", valid)
        (folder / "ca.crt").write_bytes(pair.cert_pem)
        return cls(folder, pair)

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.crt")

    def issue(
        self, name: str, valid: Valid = NOW, hosts: Sequence[str] = issuing.LOOPBACK, ca: str = "", file: str = ""
    ) -> Files:
        """A certificate under this name, good on both sides, beside the CA that its owner trusts (this one)."""
        pair = issuing.issue(self.pair, Role(name, listens=True, calls=True), hosts, valid)
        cert, key = (self.folder / f"{file or name}.{kind}" for kind in ("crt", "key"))
        for path, content in ((key, pair.key_pem), (cert, pair.cert_pem)):
            path.write_bytes(content)
        return Files(ca or self.ca, str(cert), str(key))
