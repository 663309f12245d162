"""What the headers of the configs say, as tables for their folders and as MMPretrain's model index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
INDEX = CONFIGS / "model-index.yml"
PATHS = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
DATA_SETS = {
    "in1k": "ImageNet-1k",
    "cub": "CUB-200-2011",
    "cars": "Stanford Cars",
    "aircraft": "FGVC-Aircraft",
    "dogs": "Stanford Dogs",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


@dataclass(frozen=True)
class Header:
    """The comment that a config begins with: a sentence, then ``Key: text`` lines; two spaces continue a line."""

    path: Path
    title: str
    paper: str
    published: str
    recipe: str
    train: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def data_set(self) -> str:
        return DATA_SETS[self.name.rsplit("_", 1)[1]]

    @property
    def short_recipe(self) -> str:
        return self.recipe.split(" (")[0]

    @property
    def venue(self) -> str:
        """The conference or journal, with which a paper's line ends."""
        return self.paper.rsplit(", ", 1)[1]


def read_header(path: Path) -> Header:
    comment = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = "\n".join(line[2:] for line in comment).replace("\n  ", " ")
    title, *items = re.split(r"\n(?=[A-Z][a-z]+: )", text)
    fields = dict(item.split(": ", 1) for item in items)
    return Header(path, title.replace("\n", " "), **{key.lower(): value for key, value in fields.items()})


def headers() -> list[Header]:
    """Of all configs that are for a paper."""
    return [read_header(path) for path in PATHS if path.parent.name != "demo"]


def table(folder: Path) -> str:
    rows = ["| config | published | recipe | paper |", "|---|---|---|---|"]
    rows += [
        f"| [{header.name}]({header.path.name}) | {header.published} | {header.short_recipe} | {header.venue} |"
        for header in headers()
        if header.path.parent == folder
    ]
    return "\n".join(rows)


def with_table(readme: str, folder: Path) -> str:
    """A README whose table is that of the folder's configs."""
    return re.sub(r"^\| config \|.*\n(\|.*\n)*", lambda _: table(folder) + "\n", readme, flags=re.MULTILINE)


def model_index() -> str:
    """Collections are papers. No weights are ours, so results have no figures; published ones are quoted as text."""
    papers = dict(sorted({header.venue: header.paper for header in headers()}.items()))
    titles = {venue: paper.rsplit(", ", 1)[0].strip('"') for venue, paper in papers.items()}
    index = {
        "Collections": [{"Name": venue, "Paper": {"Title": title}} for venue, title in titles.items()],
        "Models": [
            {
                "Name": header.name,
                "In Collection": header.venue,
                "Config": f"configs/{header.path.relative_to(CONFIGS)}",
                "Metadata": {"Training Data": header.data_set},
                "Results": [{"Task": "Image Classification", "Dataset": header.data_set, "Metrics": {}}],
                "Published": header.published,
            }
            for header in headers()
        ],
    }
    return yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=1000)
