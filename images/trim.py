"""``trim.py SITE_PACKAGES [VARIANT]``: takes out of an image's environment what neither server nor job ever opens.

It runs in the same RUN line as pip, so that no layer holds what goes. Where a distribution is not installed, its lines
mean nothing.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

UNUSED = {
    # Programs that test torch, and the headers of extensions: nothing is compiled where the root is read-only. Of the
    # programs only torch_shm_manager is started.
    "torch": ("torch/test", "torch/include", "torch/bin/[!t]*", "torch/bin/test_*", "torch/lib/*_test.so"),
    # The workers of Java and C++ programs, and the pages of a dashboard that is not started.
    "ray": ("ray/jars", "ray/cpp", "ray/dashboard/client"),
    # An asynchronous client beside the synchronous one, which knows nothing of it.
    "kubernetes": ("kubernetes/aio",),
    # A second implementation, for interpreters that cannot load the first one.
    "zstandard": ("zstandard/_cffi*.so",),
    "pyarrow": ("pyarrow/tests", "pyarrow/include", "pyarrow/src"),
    "pandas": ("pandas/tests",),
    "numpy": ("numpy/**/tests",),
    "sympy": ("sympy/**/tests",),
    "networkx": ("networkx/**/tests",),
    "mpmath": ("mpmath/tests",),
}


def unused(site_packages: Path, variant: str) -> Iterator[Path]:
    """Files and folders that may go. ``variant``: cpu or cu126, which says whose kernels bitsandbytes needs."""
    for patterns in UNUSED.values():
        for pattern in patterns:
            yield from site_packages.glob(pattern)
    kept = {"cpu", f"cuda{variant.removeprefix('cu')}"}
    for library in site_packages.glob("bitsandbytes/libbitsandbytes_*.so"):
        if library.stem.removeprefix("libbitsandbytes_") not in kept:
            yield library


def main(site_packages: Path, variant: str = "") -> None:
    """Removes it, and says how many MB that were."""
    size = 0
    for path in list(unused(site_packages, variant)):
        files = path.rglob("*") if path.is_dir() else [path]
        size += sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    sys.stdout.write(f"{size / 1e6:.0f} MB of {site_packages} that nothing opens are gone\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
