"""The Python examples of README and docs run as they stand, in a folder with the names they use."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import alignscope

ROOT = Path(alignscope.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]


@pytest.fixture(scope="module")
def folder(zoo, tmp_path_factory) -> Path:
    """base/, dpo/ (the same model, moved a little), reward/ is not used by the examples; pairs.jsonl, prompts.jsonl."""
    here = tmp_path_factory.mktemp("docs")
    shutil.copytree(zoo["llama"], here / "base")
    shutil.copytree(zoo["llama"], here / "dpo")
    weights = load_file(here / "dpo" / "model.safetensors")
    save_file({k: v * 1.02 for k, v in weights.items()}, here / "dpo" / "model.safetensors", metadata={"format": "pt"})
    rows = [
        {"prompt": f"the cat {i}\n", "chosen": f"sat on {i * 7 % 13} mats", "rejected": f"ran {'on ' * (i % 4)}away"}
        for i in range(60)
    ]
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return here


def test_there_are_examples():
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(block, "<example>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_of_the_repository_exist(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []
