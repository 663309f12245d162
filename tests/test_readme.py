"""The README names what there is, its Python runs, and its commands are taken by the programs they call."""

import ast
import re

import pytest
import torch
from support.documents import (
    FENCE,
    ROOT,
    check_command,
    commands,
    extras,
    fenced_blocks,
    named_files,
    parametrized_commands,
)

from covpool_plugins import whitening
from covpool_plugins.explain import list_explanations

README = (ROOT / "README.md").read_text()
BLOCKS = fenced_blocks(README)
SLOW_BLOCKS = ("By name 1",)  # a checkpoint of 230 MB


def _names(section: str) -> list[str]:
    """First column of the first table of a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_every_whitening_method_has_its_row():
    assert _names("Whitening") == whitening.list_whitening_methods()


def test_every_explanation_has_its_row():
    assert sorted(_names("Explanations")) == sorted(list_explanations())


def test_the_extras_exist():
    assert _names("Installation") and set(_names("Installation")) <= extras()


def test_the_files_exist():
    missing = [file for file in named_files(README) if not (ROOT / file).exists()]
    assert not missing


# Python


def _of_epoch_60(path):
    """A checkpoint that training wrote for the config that the README names."""
    from mmpretrain import get_model

    torch.save({"state_dict": get_model("resnet50_svdpade_8xb32_in1k").state_dict(), "meta": {}}, path)


NEEDED_FILES = {"epoch_60.pth": _of_epoch_60}


def _kind(code: str) -> str:
    """A config of MMPretrain assigns and imports nothing; a program imports what it uses."""
    kinds = {type(statement) for statement in ast.parse(code).body}
    if kinds == {ast.Assign}:
        return "config"
    return "program" if kinds & {ast.Import, ast.ImportFrom} else "neither"


def _parametrized(kind: str):
    found = [block for block in BLOCKS if block.language == "python" and _kind(block.code) == kind]
    marks = {name: pytest.mark.slow for name in SLOW_BLOCKS}
    return [pytest.param(block, id=block.name, marks=marks.get(block.name, ())) for block in found]


def test_every_block_is_a_program_or_a_config():
    assert {block.language for block in BLOCKS} == {"python"}
    assert [block.name for block in BLOCKS if _kind(block.code) == "neither"] == []
    assert len(BLOCKS) == README.count("\n```") / 2
    assert set(SLOW_BLOCKS) <= {block.name for block in BLOCKS}


@pytest.mark.parametrize("block", _parametrized("program"))
def test_a_program_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, make in NEEDED_FILES.items():
        if name in block.code:
            make(tmp_path / name)
    exec(compile(block.code, f"README.md, {block.name}", "exec"), {"__name__": "__main__"})


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


def test_every_indented_line_is_a_command():
    indented = [line.strip() for line in FENCE.sub("", README).splitlines() if line.startswith("    ")]
    assert indented and set(indented) <= set(commands(README))


@pytest.mark.parametrize("command", parametrized_commands(README))
def test_a_command_is_taken(command, tmp_path, monkeypatch):
    check_command(command, tmp_path, monkeypatch)
