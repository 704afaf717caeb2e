"""The code in the README and in docs/ runs as it stands, file by file, in an empty folder.

Blocks fenced as ``python`` run in order and share their names, as a reader would paste them. What a reader is told
in words but a test must do (making the files a guide speaks of) stands in an HTML comment that opens with ``setup``;
such code may use ``monkeypatch``.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$|^<!-- setup\n(?P<setup>.*?)^-->$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_runs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = guide.read_text()
    blocks = list(BLOCK.finditer(text))
    if not blocks:
        pytest.skip("no code in it")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__", "monkeypatch": monkeypatch}
    for block in blocks:
        group = block.lastgroup or "code"
        # Blank lines before the code make a traceback show the guide's own line number.
        before = "\n" * text.count("\n", 0, block.start(group))
        exec(compile(before + block[group], str(guide), "exec"), names)
