"""The Stanford Dogs data set, which MMPretrain lacks."""

from __future__ import annotations

import re
from typing import Any

from mmengine.fileio import get_file_backend, list_from_file
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..checks import check_choice
from ..errors import OptionError, require_extra

SYNSET = re.compile(r"n\d{8}-")


@DATASETS.register_module()
class StanfordDogs(BaseDataset):
    """The `Stanford Dogs <http://vision.stanford.edu/aditya86/ImageNetDogs/>`_ data set: 120 breeds.

    As ``images.tar`` and ``lists.tar`` unpack::

        stanford_dogs
        ├── Images
        │   ├── n02085620-Chihuahua
        │   │   ├── n02085620_10074.jpg
        │   │   └── ...
        │   └── ...
        ├── train_list.mat
        └── test_list.mat

    The classes are the folders in ``Images``, sorted, with the numbers in front of their names left out.

    Args:
        data_root: the folder.
        split: ``train`` or ``test``.
        ann_file: list of the images, in ``data_root``; ``train_list.mat`` or ``test_list.mat`` by default, which need
            SciPy. A file with another ending is a text with lines like ``n02085620-Chihuahua/n02085620_10074.jpg``.
        data_prefix: the folder with the images, in ``data_root``.
        kwargs: of MMPretrain's ``BaseDataset``, for example ``pipeline``; ``test_mode=False`` for ``train`` only.

    Source: Khosla, Jayadevaprakash, Yao & Fei-Fei, "Novel Dataset for Fine-Grained Image Categorization", FGVC
    workshop at CVPR 2011.

    Raises:
        OptionError: for another split, or a list that is damaged or does not fit the folders.
        FileNotFoundError: for missing files.
        MissingExtraError: for a ``.mat`` file without SciPy.
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        ann_file: str | None = None,
        data_prefix: str = "Images",
        **kwargs: Any,
    ) -> None:
        check_choice("StanfordDogs: split", split, ("train", "test"))
        self.backend = get_file_backend(data_root, enable_singleton=True)
        images = self.backend.join_path(data_root, data_prefix)
        listed = self.backend.list_dir_or_file(images, list_file=False) if self.backend.isdir(images) else ()
        self.folders = sorted(folder for folder in listed if not folder.startswith("."))
        if not self.folders:
            raise FileNotFoundError(f"{images} has no folders of images; StanfordDogs expects one for each class there")
        if kwargs.get("classes") is None:
            names = tuple(SYNSET.sub("", folder) for folder in self.folders)
            kwargs["metainfo"] = {"classes": names, **(kwargs.get("metainfo") or {})}
        kwargs.setdefault("test_mode", split == "test")
        super().__init__(ann_file or f"{split}_list.mat", data_root=data_root, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Path and label of every image of the split."""
        labels = {folder: label for label, folder in enumerate(self.folders)}
        data_list = []
        for entry in self._entries():
            folder, _, name = entry.partition("/")
            if folder not in labels or not name or "/" in name:
                raise OptionError(
                    f"{self.ann_file}: expected <folder>/<image> with a folder of {self.img_prefix}, got {entry!r}"
                )
            path = self.backend.join_path(self.img_prefix, folder, name)
            data_list.append({"img_path": path, "gt_label": labels[folder]})
        return data_list

    def _entries(self) -> list[str]:
        path = self.ann_file
        if not self.backend.isfile(path):
            raise FileNotFoundError(f"{path} does not exist; StanfordDogs expects the list of the images there")
        if not path.endswith(".mat"):
            return [line for line in map(str.strip, list_from_file(path)) if line]
        io = require_extra("scipy.io", "mmpretrain")
        try:
            # Safe for any file: SciPy's reader does not unpickle, and returns objects and functions as raw arrays.
            cells = io.loadmat(path, variable_names=["file_list"])["file_list"]
            return [str(cell.item()) for cell in cells.ravel()]
        except KeyError as error:
            raise OptionError(f"{path} has no file_list") from error
        except Exception as error:  # what loadmat raises for a damaged file depends on where the damage is
            raise OptionError(f"{path} is not a list of images, or is damaged") from error

    def extra_repr(self) -> list[str]:
        """As in MMPretrain's own data sets."""
        return [f"Root of dataset: \t{self.data_root}"]
