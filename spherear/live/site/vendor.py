"""The browser runtime that ships: `python -m spherear.live.site.vendor` fetches it and writes its lock file.

onnxruntime-web from its registry package, two files of it: the module with its loader, and the WebAssembly build for
processors (SIMD), packed by gzip, which browsers unpack. Needs `npm` and a network; writing a site needs neither.

WebGPU is left out: its build is 6.6 MB instead of 3.7 MB, no test here has a GPU in its browser, and whether models of
under a million parameters, which are called 700 times per picture, gain by it was not measured.
"""

import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from spherear.live.site.build import LOCK, VENDOR, content_hash
from spherear.models.config import require
from spherear.models.files import atomic_path, read_json, write_json

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = {
    "ort.js": "package/dist/ort.wasm.bundle.min.mjs",
    "ort.wasm.gz": "package/dist/ort-wasm-simd-threaded.wasm",
}


def fetch(version: str, folder: Path) -> Path:
    """Download the package -> the path of its archive. ValueError without npm, or if it refuses."""
    npm = shutil.which("npm")
    require(npm is not None, "npm is not on the PATH; expected it, to fetch the runtime")
    done = subprocess.run([str(npm), "pack", f"{PACKAGE}@{version}"], cwd=folder, capture_output=True, text=True)
    require(done.returncode == 0, f"npm pack {PACKAGE}@{version} failed: {done.stderr.strip()[-200:]}")
    return next(folder.glob("*.tgz"))


def unpack(archive: Path, version: str, folder: Path) -> None:
    """Write the runtime's files and their lock file. ValueError for an archive without one of them."""
    with tarfile.open(archive) as package:
        for name, member in FILES.items():
            require(member in package.getnames(), f"{archive.name} has no {member}; expected it: FILES is out of date")
            content = package.extractfile(member)
            assert content is not None
            with atomic_path(folder / name) as part:
                data = content.read()
                part.write_bytes(gzip.compress(data, 9, mtime=0) if name.endswith(".gz") else data)
    hashes = {name: content_hash(folder / name) for name in FILES}
    write_json(folder / LOCK, {"package": PACKAGE, "version": version, "files": FILES, "sha256": hashes})


def main(version: str = VERSION, check: bool = False) -> None:
    """Fetch the runtime of the static page, or check that what ships is what the registry has.

    Args:
        version: Of onnxruntime-web.
        check: Write nothing; compare hashes.
    """
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "found" if check else VENDOR
        out.mkdir(exist_ok=True)
        unpack(fetch(version, Path(place)), version, out)
        lock = read_json(out / LOCK)
        if check:
            require(lock == read_json(VENDOR / LOCK), f"{PACKAGE} {version} has other files than those in {VENDOR}")
        for name, found in lock["sha256"].items():
            print(f"{name}: {(VENDOR / name).stat().st_size / 1e6:.2f} MB, sha256 {found}")


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main))
