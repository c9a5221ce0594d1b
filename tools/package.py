"""Build the source release and the wheel, as they would be published: into dist/.

Both are made of what git tracks, the wheel of the unpacked source release, and nothing is fetched:
setuptools has to be there.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tools.count_lines import REPOSITORY

# How a builder calls it, by PEP 517; what it has to say is seen if it fails.
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def main() -> int:
    """Build both, and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", metavar="DIR")
    for path in build(parser.parse_args().output):
        print(path)
    return 0


def build(output: Path) -> tuple[Path, Path]:
    """Return the paths of a new source release and a new wheel in a folder."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        tree = Path(scratch, "tree")
        copy_tracked(tree)
        sdist = build_one("build_sdist", tree, output)
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        return sdist, build_one("build_wheel", Path(scratch, sdist.name[: -len(".tar.gz")]), output)


def copy_tracked(folder: Path) -> None:
    """Copy what git tracks, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)


def build_one(kind: str, tree: Path, output: Path) -> Path:
    """Have the backend build "build_sdist" or "build_wheel" of a tree; return the file's path."""
    with tempfile.TemporaryDirectory(prefix="package-") as made:
        command = [sys.executable, "-c", BUILD, kind, made]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{kind} failed:\n{done.stdout}{done.stderr}")
        (file,) = Path(made).iterdir()
        return Path(shutil.move(file, output / file.name))


if __name__ == "__main__":
    sys.exit(main())
