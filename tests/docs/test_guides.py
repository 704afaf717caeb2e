"""The code in the README and in docs/ runs as it stands, file by file, in an empty folder.

Blocks fenced as ``python`` run in order and share their names, as a reader would paste them; of those fenced as
``console`` each line behind a ``$``, which calls ``icelite``. What a reader is told in words but a test must do (making
the files a guide speaks of) stands in an HTML comment that opens with ``setup``; such code may use ``monkeypatch``,
and ``server`` (the S3 service of the tests) on a page with the comment ``<!-- needs S3 -->``, which is skipped where
there is none.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest

from icelite.cli import main

ROOT = Path(__file__).parents[2]
GUIDES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$|^```console\n(?P<console>.*?)^```$|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
NEEDS_S3 = "<!-- needs S3 -->\n"


@pytest.mark.parametrize(
    "guide",
    [pytest.param(path, marks=pytest.mark.s3 if NEEDS_S3 in path.read_text() else ()) for path in GUIDES],
    ids=[str(path.relative_to(ROOT)) for path in GUIDES],
)
def test_code_runs(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    text = guide.read_text()
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        pytest.skip("no code in it")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__", "monkeypatch": monkeypatch}
    if NEEDS_S3 in text:
        names["server"] = request.getfixturevalue("s3_server")
        request.getfixturevalue("no_aws_settings")
    for block in blocks:
        group = block.lastgroup or "code"
        if group == "console":
            run_commands(block[group], monkeypatch)
            continue
        # Blank lines before the code make a traceback show the guide's own line number.
        before = "\n" * text.count("\n", 0, block.start(group))
        exec(compile(before + block[group], str(guide), "exec"), names)


def run_commands(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of a block, and expect each to succeed."""
    for line in text.splitlines():
        if line.startswith("$ "):
            monkeypatch.setattr(sys, "argv", shlex.split(line[2:]))
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0, line
