"""The README's Python blocks run, one after the other."""

import re
from pathlib import Path

import pytest

import lrp

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    assert names["x"].grad.shape == (5, 1, 28, 28)
    assert list(names["relevances"]) == ["4", "0"]


def test_the_rules_table_lists_every_key() -> None:
    table = re.findall(r'`"([a-z0-9+]+)"`', README.split("## Rules")[1].split("All are in")[0])
    assert table == list(lrp.rules.KEYS)
    composites = re.findall(r'`"([a-z0-9_]+)"`', README.split("| `lrp.composites.`")[1].split("* **Montavon")[0])
    assert sorted(composites) == sorted(lrp.composites.KEYS.keys() - lrp.rules.KEYS.keys())
