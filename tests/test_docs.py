"""The pages name what there is, their links lead somewhere, their Python runs, and programs take their commands."""

import ast
import re

import pytest
import torch
from support.documents import (
    FENCE,
    ROOT,
    Block,
    broken_links,
    check_command,
    commands,
    extras,
    fenced_blocks,
    named_files,
    parametrized_commands,
)

from covpool_plugins import explain, whitening

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "configs").rglob("README.md"))]
LONGEST_README = 160
SLOW_BLOCKS = ("mmpretrain: Models by name 1",)  # a checkpoint of 230 MB


def _name(page):
    return str(page.relative_to(ROOT))


def _first_column(page, section):
    """The code in the first column of the first table of a section."""
    text = (ROOT / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_every_whitening_method_has_its_row():
    assert _first_column("docs/whitening.md", "Methods") == whitening.list_whitening_methods()


def test_every_explanation_has_its_row():
    assert sorted(_first_column("docs/explanations.md", "The methods")) == sorted(explain.list_explanations())


def test_the_extras_exist():
    named = set(_first_column("README.md", "Installation"))
    assert named and named <= extras()


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= LONGEST_README


def test_every_page_is_linked_from_the_readme_and_from_the_index():
    for index, pages in ((README, "docs/"), (ROOT / "docs" / "README.md", "")):
        text = index.read_text()
        names = {page.name for page in PAGES if page.name != "README.md"}
        assert {name for name in names if f"({pages}{name})" not in text} == set()


@pytest.mark.parametrize("page", LINKING, ids=_name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_named_files_exist(page):
    assert [file for file in named_files(page.read_text()) if not (ROOT / file).exists()] == []


# Python


def _of_epoch_60(path):
    """A checkpoint that training wrote for the config that the page names."""
    from mmpretrain import get_model

    torch.save({"state_dict": get_model("resnet50_svdpade_8xb32_in1k").state_dict(), "meta": {}}, path)


NEEDED_FILES = {"epoch_60.pth": _of_epoch_60}
BLOCKS = {
    f"{page.stem}: {block.name}": block
    for page in PAGES
    for block in fenced_blocks(page.read_text())
    if block.language == "python"
}


def _kind(block: Block) -> str:
    """A config of MMPretrain assigns and imports nothing; a program imports what it uses."""
    kinds = {type(statement) for statement in ast.parse(block.code).body}
    if kinds == {ast.Assign}:
        return "config"
    return "program" if kinds & {ast.Import, ast.ImportFrom} else "neither"


def _parametrized(kind: str):
    return [
        pytest.param(block, id=name, marks=[pytest.mark.slow] if name in SLOW_BLOCKS else [])
        for name, block in BLOCKS.items()
        if _kind(block) == kind
    ]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_has_a_language(page):
    text = page.read_text()
    blocks = fenced_blocks(text)
    assert {block.language for block in blocks} <= {"python", "text"}
    assert len(blocks) == text.count("\n```") / 2


def test_every_block_is_a_program_or_a_config():
    assert [name for name, block in BLOCKS.items() if _kind(block) == "neither"] == []
    assert set(SLOW_BLOCKS) <= BLOCKS.keys()


@pytest.mark.parametrize("block", _parametrized("program"))
def test_a_program_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, make in NEEDED_FILES.items():
        if name in block.code:
            make(tmp_path / name)
    exec(compile(block.code, block.name, "exec"), {"__name__": "__main__"})


def _built(key: str, part):
    """What a config has under a key, built."""
    from mmengine.registry import HOOKS
    from mmpretrain import get_model
    from mmpretrain.models.utils.norm import build_norm_layer
    from mmpretrain.registry import MODELS

    builders = {
        "model": lambda model: [get_model(model)],
        "backbone": lambda backbone: [MODELS.build(backbone)],
        "norm_cfg": lambda norm: [build_norm_layer(norm, 64)],
        "custom_hooks": lambda hooks: [HOOKS.build(hook) for hook in hooks],
    }
    return builders[key](part)


@pytest.mark.parametrize("block", _parametrized("config"))
def test_a_config_is_built(block, tmp_path, monkeypatch):
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    path = tmp_path / "config.py"
    path.write_text(block.code)
    cfg = Config.fromfile(path)
    keys = [statement.targets[0].id for statement in ast.parse(block.code).body]
    monkeypatch.setattr(DefaultScope, "_instance_dict", type(DefaultScope._instance_dict)())
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        for key in keys:
            if key != "_base_":
                for part in _built(key, cfg if key == "model" else cfg[key]):
                    if key in ("model", "backbone"):
                        part(torch.randn(2, 3, 64, 64))


# Commands


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_indented_line_is_a_command(page):
    text = page.read_text()
    indented = {line.strip() for line in FENCE.sub("", text).splitlines() if line.startswith("    ")}
    assert indented <= set(commands(text))


@pytest.mark.parametrize("command", parametrized_commands(*(page.read_text() for page in PAGES)))
def test_a_command_is_taken(command, tmp_path, monkeypatch):
    check_command(command, tmp_path, monkeypatch)
