"""How the runnable blocks of a page are found, run and held against what the page says."""

import subprocess
from pathlib import Path

import pytest
from e2e import pages

PAGE = """
<!-- run -->
```sh
NAME=ann
echo "$NAME is 3 years old"
```

<!-- shows -->
```text
ann is ... years old
```

Not this one:

```sh
exit 1
```

<!-- run, exit code 3 -->
```sh
(exit 3)
```

<!-- run in another terminal, until: ready -->
```sh
echo ready
sleep 600
```

<!-- run -->
```sh
echo "$NAME again"
```
"""


def test_the_blocks_are_those_that_are_marked() -> None:
    found = pages.blocks(PAGE)
    assert [(each.code, each.until) for each in found] == [(0, ""), (3, ""), (0, "ready"), (0, "")]
    assert found[0].shown == "ann is ... years old\n"


def test_a_page_is_one_session_and_leaves_nothing_running(tmp_path: Path) -> None:
    found = pages.blocks(PAGE)
    # The pipe would stay open, and this wait, if the sleep did.
    done = subprocess.run(
        ["bash", "-c", pages.script(found)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert pages.printed(done.stdout, len(found)) == [["ann is 3 years old"], [], [], ["ann again"]]


@pytest.mark.parametrize(
    ("text", "code"),
    [("false\n", 1), ("true | false | true\n", 1), ('echo "$UNSET"\n', 1)],
)
def test_a_block_that_fails_fails_the_page(tmp_path: Path, text: str, code: int) -> None:
    wrong = pages.script([pages.Block(text), pages.Block("echo not reached\n")])
    done = subprocess.run(["bash", "-c", wrong], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert "not reached" not in done.stdout


def test_the_exit_code_must_be_the_one_that_is_said(tmp_path: Path) -> None:
    wrong = pages.script([pages.Block("true\n", code=1)])
    assert subprocess.run(["bash", "-c", wrong], cwd=tmp_path, timeout=60, check=False).returncode == 98


def test_what_ends_before_it_is_ready_fails_the_page(tmp_path: Path) -> None:
    wrong = pages.script([pages.Block("echo no\n", until="ready")])
    done = subprocess.run(["bash", "-c", wrong], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (99, "no")


@pytest.mark.parametrize(
    "page",
    ["\n<!-- run -->\nText\n", "\n<!-- run twice -->\n```sh\ntrue\n```\n", "\n<!-- run -->\n```python\n1\n```\n"],
)
def test_a_comment_that_nobody_understands_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="run"):
        pages.blocks(page)


@pytest.mark.parametrize(
    ("shown", "right"),
    [
        ("a 1\nb\n", True),
        ("a 1\n\nb\n", True),
        ("a ...\nb\n", True),
        ("...\n", True),
        ("...\nb\n", True),
        ("a 1\n...\n", True),
        ("a 1\n", False),
        ("b\n", False),
        ("a ...\n", False),
        ("a 1\nb\nc\n", False),
    ],
)
def test_what_is_shown_must_be_what_is_printed(shown: str, right: bool) -> None:
    assert pages.shows(["a 1", "", "b"], shown) is right
