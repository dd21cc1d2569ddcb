"""onnxruntime-web, of one version, whose files are those of its npm package byte for byte."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from fewstep.errors import UserError, unreadable
from fewstep.files import sha256_file

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
WASM = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""sha256 by file of the package's dist/: what a browser without WebGPU loads."""
WEBGPU = {
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
_SECONDS = 600


def put_runtime(source: str, folder: Path) -> None:
    """Put the runtime's files into `folder`, from npm ("npm"), the package's .tgz, its folder, or that of its files.

    UserError: npm is missing or fails, there is no such package, or a file is not that of VERSION.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        if source == "npm":
            found = _unpacked(_fetched(place), place)
        else:
            given = Path(source).expanduser()
            if not given.exists():
                raise UserError("--runtime", source, f"no such folder or file: give npm, or the package {PACKAGE}")
            found = given if given.is_dir() else _unpacked(given, place)
            found = next((each for each in (found / "package" / "dist", found / "dist") if each.is_dir()), found)
        for name, digest in (WASM | WEBGPU).items():
            if not (found / name).is_file():
                raise UserError("--runtime", source, f"has no {name}: {PACKAGE} {VERSION} is needed")
            if sha256_file(found / name) != digest:
                raise UserError("--runtime", source, f"{name} is not that of {PACKAGE} {VERSION}: its sha256 differs")
            shutil.copyfile(found / name, folder / name)


def _fetched(place: Path) -> Path:
    """The package as npm packs it, from the registry that npm is set up with."""
    npm = shutil.which("npm")
    if npm is None:
        remedy = f"there is no npm here: install it, or give the package {PACKAGE} {VERSION} as a folder or .tgz"
        raise UserError("--runtime", "npm", remedy)
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(place), "--loglevel=error"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise UserError("--runtime", "npm", f"npm pack took longer than {_SECONDS} s") from None
    packed = next(place.glob("*.tgz"), None)
    if done.returncode or packed is None:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        remedy = f"npm pack {PACKAGE}@{VERSION} failed ({lines[0][:200]}): give the package as a folder or .tgz"
        raise UserError("--runtime", "npm", remedy)
    return packed


def _unpacked(archive: Path, place: Path) -> Path:
    """The files that are needed of a packed package, and no others."""
    with unreadable("--runtime", "is no .tgz of an npm package", str(archive)), tarfile.open(archive) as packed:
        for name in WASM | WEBGPU:
            member = packed.extractfile(f"package/dist/{name}")
            if member is not None:
                with open(place / name, "wb") as file:
                    shutil.copyfileobj(member, file)
    return place
