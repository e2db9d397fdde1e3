"""Writes a class-folder tree of small images as one .npz file of MedMNIST's form, which is quick to copy and to load.

python scripts/npz.py dataset=folder data_dir=DIR --out FILE.npz
python train.py dataset=folder data_dir=FILE.npz ...

The images are stored as they are trained on, dataset.size x dataset.size, from train/ and test/, and from val/ if there
is also test/. A run that began on the tree resumes with the file. Also for dataset=cifar10 and cifar100.
"""

import shlex
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry, start
from normloss.config.images import class_folders
from normloss.errors import UserError
from normloss.sweeps.composing import expand


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="dataset=NAME data_dir=DIR, as for train.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file to write")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: write(options.overrides, options.out))


def write(overrides: list[str], out: Path) -> None:
    from normloss.data import LOADERS, arrays

    borrowed = [] if any(word.startswith("recipe=") for word in overrides) else ["recipe=cifar10_resnet110"]
    configs = expand([*overrides, *borrowed])
    if len(configs) != 1:
        raise UserError(f"must be the words of one run, got those of {len(configs)}")
    (cfg,) = configs
    dataset, data_dir = cfg.dataset, Path(cfg.data_dir)
    if dataset.name not in ("folder", "cifar10", "cifar100"):
        raise UserError(f"dataset: must be folder, cifar10 or cifar100, got {dataset.name}")
    names = None
    if dataset.name == "folder":
        names = dataset.label, [path.name for path in class_folders(data_dir / "train")]
        if (data_dir / "test").is_dir() and (data_dir / "val").is_dir():
            dataset = dataset.model_copy(update={"val": "file"})
    splits = LOADERS[dataset.name](dataset, data_dir)
    with entry.written("--out", out.expanduser().parent):
        arrays.write(splits, out.expanduser(), names)
    counts = " + ".join(f"{len(split.labels):,}" for split in splits)
    same = [word for word in overrides if not word.startswith("data_dir=")]
    print(
        f"{out}  {counts} images, {out.expanduser().stat().st_size / 2**20:.1f} MiB;"
        f" python train.py {shlex.join([*same, f'data_dir={out}'])}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
