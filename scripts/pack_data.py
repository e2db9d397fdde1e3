"""Packs a data set of small images, pixel for pixel, into a few files that travel: CIFAR-10 into two of 50 MB.

python scripts/pack_data.py dataset=cifar10 data_dir=data --out packed [--part-mib 56]
python train.py ... data_dir=packed

Any of cifar10, cifar100, folder and digits. A run's data are the same packed or not: it goes on with either.
"""

import argparse
import sys
import time
from pathlib import Path

from normloss.cli import entry
from normloss.errors import UserError
from normloss.sweeps.members import expand


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="dataset=NAME data_dir=DIR, as for train.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the packed files")
    parser.add_argument("--part-mib", type=float, default=56, help="size of a file, MiB (%(default)s)")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: pack(options))


def pack(options: argparse.Namespace) -> None:
    from normloss.data import LOADERS, packed

    borrowed = [] if any(word.startswith("recipe=") for word in options.overrides) else ["recipe=mini"]
    (cfg,) = expand([*options.overrides, *borrowed])
    if cfg.dataset.name not in LOADERS:
        raise UserError(f"dataset: must be one of {' '.join(LOADERS)}, got {cfg.dataset.name}")
    if not options.part_mib > 0:
        raise UserError(f"--part-mib: must be greater than 0, got {options.part_mib:g}")
    began = time.monotonic()
    train, test = LOADERS[cfg.dataset.name](cfg.dataset, Path(cfg.data_dir).expanduser())
    name, classes = cfg.dataset.name, cfg.dataset.num_classes
    try:
        part_bytes, label = int(options.part_mib * 2**20), getattr(cfg.dataset, "label", None)
        paths = packed.write(train, test, name, classes, options.out, part_bytes, label)
    except OSError as error:
        raise UserError(f"--out: must be a folder that can be written, got {options.out} ({error.strerror})") from None
    for path in paths:
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
    print(
        f"{len(train.labels):,} + {len(test.labels):,} images in {time.monotonic() - began:.0f} s;"
        f" python train.py dataset={name} data_dir={options.out}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
