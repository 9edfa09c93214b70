"""Every relative link in README, CONTRIBUTING and docs leads somewhere, to its heading as GitHub names it."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
_FENCE = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)


def links(page: str) -> list[str]:
    """What the page links to within this project."""
    found: list[str] = _LINK.findall(_CODE.sub("code", _FENCE.sub("", page)))
    return [each for each in found if not re.match(r"[a-z]+:", each)]


def anchors(page: str) -> set[str]:
    """The anchors of its headings; the second of one name ends in -1."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken(path: Path) -> list[str]:
    """The links of this page that lead nowhere, each with what is missing."""
    wrong = []
    for link in links(path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{link}: there is no such heading")
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_every_page_is_in_the_index() -> None:
    """Or in the index of decisions, which the first one links to."""
    docs = ROOT / "docs"
    linked = set()
    for index in (docs / "README.md", docs / "decisions" / "README.md", docs / "clients" / "README.md"):
        if index.exists():
            linked |= {(index.parent / each.partition("#")[0]).resolve() for each in links(index.read_text("utf-8"))}
    pages = {path for path in PAGES if docs in path.parents} - {docs / "README.md"}
    assert sorted(path.relative_to(docs).as_posix() for path in pages - linked) == []


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("# A title\n[there](#a-title) [away](https://example.com) `[no](link)`\n```\n[no](link)\n```\n", 0),
        ("[nowhere](nowhere.md)", 1),
        ("# A title\n[nowhere](#another-title)", 1),
        ("# `ordersys up`, now\n[there](#ordersys-up-now)", 0),
        ("# Twice\n# Twice\n[there](#twice-1) [nowhere](#twice-2)", 1),
    ],
)
def test_the_check_finds_what_is_wrong(tmp_path: Path, page: str, wrong: int) -> None:
    (tmp_path / "page.md").write_text(page)
    assert len(broken(tmp_path / "page.md")) == wrong
