"""Code blocks, links and commands of a Markdown page; what can be said of a command without running it."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "covpool_plugins", "docs", "tests", "tools")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the heading it stands under, its number there, its text and what is in front."""

    language: str
    heading: str
    number: int
    code: str
    before: str

    @property
    def name(self) -> str:
        return f"{self.heading} {self.number}"


def fenced_blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        heading = re.findall(r"^#+ (.*)$", FENCE.sub("", before), re.MULTILINE)[-1]
        number = 1 + sum(block.heading == heading for block in found)
        found.append(Block(match[1], heading, number, match[2], before))
    return found


def commands(text: str) -> list[str]:
    """The lines of indented blocks, and the spans of code that are commands with arguments."""
    text = FENCE.sub("", text)
    indented = re.findall(r"(?:^|\n)\n((?: {4}.*\n)+)", text)
    lines = [line.strip() for block in indented for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", rest)]
    return lines + [span for span in spans if len(words := _words(span)) > 1 and words[0] in PROGRAMS]


def named_files(text: str) -> list[str]:
    """Paths in this repository, from its root, that spans of code name."""
    spans = re.findall(r"`([^`\s]+)`", FENCE.sub("", text))
    return [span for span in spans if span.split("/")[0] in FOLDERS and "/" in span and "NAME" not in span]


def broken_links(page: Path) -> list[str]:
    """Links and pictures of a page that lead to no file of this repository, or to no heading of a page."""
    text = FENCE.sub("", page.read_text())
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not _leads_somewhere(page, link)]


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in _anchors(target.read_text())


def _anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_command(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless the program exists and its own parser takes the arguments.

    Args:
        command: as a shell takes it.
        folder: an empty one.
    """
    program, *arguments = _words(command)
    if not torch.cuda.is_available():
        arguments = ["cpu" if word == "cuda" else word for word in arguments]  # what a parser asks the machine for
    assert program in PROGRAMS, f"no check for {program!r}: {command}"
    for option, word in enumerate(arguments[1:]):  # folders of the reader's own pictures
        if arguments[option] == "--images" and not Path(word).exists():
            arguments[option + 1] = str(folder)
    for word in arguments:
        assert word.split("/")[0] not in FOLDERS or (ROOT / word.split("::")[0]).exists(), f"{word}: {command}"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        PROGRAMS[program](arguments, folder, patch)


def _words(command: str) -> list[str]:
    """The words without comments and settings of the environment."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return []
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    return words


class Accepted(Exception):
    """A parser has taken its arguments."""


def _parse(run: Callable[[], object], name: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a program until its parser has taken the arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *given, **options):
        parse_args(parser, *given, **options)
        raise Accepted

    patch.setattr(sys, "argv", [name, *arguments])
    patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Accepted):
        run()


def _tool(script: str, arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    names = runpy.run_path(str(ROOT / script), run_name="imported")
    if "parse" in names:
        names["parse"](arguments)  # all checks of the arguments, not the parser's alone
    elif script == "tools/run_timm.py":
        _run_timm(names["main"], arguments, folder, patch)
    else:
        _parse(names["main"], script, arguments, patch)


def _run_timm(main: Callable[..., None], arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Really run, with a script that does nothing."""
    here = folder / "here"
    here.mkdir()
    script = here / arguments[0]
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("")
    patch.chdir(here)
    patch.setattr(sys, "argv", list(sys.argv))
    main(arguments)


def _python(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    if arguments[0] == "-m":
        _module(arguments[1], arguments[2:], patch, folder)
    elif arguments[0].startswith("tools/"):
        _tool(arguments[0], arguments[1:], folder, patch)
    else:
        _script_of_timm(arguments[0], arguments[1:])


def _module(name: str, arguments: list[str], patch: pytest.MonkeyPatch, folder: Path) -> None:
    if name == "torch.distributed.run":
        _torchrun(arguments, folder, patch)
    elif name == "pytest":
        from _pytest.config import get_config

        get_config()._parser.parse(arguments)  # without its plugins and the tests' own settings
    elif name.startswith("covpool_plugins."):
        main = importlib.import_module(f"{name}.__main__").main
        if arguments:
            _parse(main, name, arguments, patch)
    else:
        assert name.startswith("studies."), f"no check for module {name!r}"
        _parse(importlib.import_module(name).main, name, arguments, patch)


def _torchrun(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    given = importlib.import_module("torch.distributed.run").get_args_parser().parse_args(arguments)
    _python([given.training_script, *given.training_script_args], folder, patch)


def _script_of_timm(script: str, arguments: list[str]) -> None:
    assert script == "../pytorch-image-models/train.py", f"no check for script {script!r}"
    known = (ROOT / "tests" / "timm_plugin" / "train_options.txt").read_text().split("\n")[1:-1]
    for word in arguments:
        assert not word.startswith("--") or word[2:].replace("-", "_") in known, word


def _mim(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """openmim passes what is not its own on to the tool of that name."""
    tool, package, config, *rest = arguments
    own = argparse.ArgumentParser()
    own.add_argument("--gpus", type=int)
    if tool == "test":
        own.add_argument("--checkpoint", required=True)
    options, passed_on = own.parse_known_args(rest)
    checkpoint = [options.checkpoint] if tool == "test" else []
    assert package == "covpool_plugins" and list((ROOT / "configs").rglob(config)), arguments
    _tool(f"tools/{tool}.py", [config, *checkpoint, *passed_on], folder, patch)


def _pip(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert arguments[0] == "install"
    for word in arguments[1:]:
        requirement = Requirement(word.replace(".[", "covpool_plugins[") if word.startswith(".") else word)
        if requirement.name == "covpool_plugins":
            assert requirement.extras <= extras(), word


def _make(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(arguments) <= set(targets), arguments


def _ci(arguments: list[str], folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert not arguments and (ROOT / ".ci" / "run").stat().st_mode & 0o100


def extras() -> set[str]:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


PROGRAMS: dict[str, Callable[[list[str], Path, pytest.MonkeyPatch], None]] = {
    "python": _python,
    "torchrun": _torchrun,
    "make": _make,
    "mim": _mim,
    "pip": _pip,
    ".ci/run": _ci,
    "apt-get": lambda *_: None,
    "dpkg": lambda *_: None,
}


def parametrized_commands(*texts: str) -> list[object]:
    """The commands of some pages, each once."""
    unique = dict.fromkeys(command for text in texts for command in commands(text))
    return [pytest.param(command, id=" ".join(_words(command))[:80]) for command in unique]
