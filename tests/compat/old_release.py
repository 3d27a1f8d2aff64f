"""consecution 0.2.0 as it was published: downloaded once, checked, and unpacked under ``.cache/``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.2.0"
SHA256 = "25753bc8d170eeba7765eb4c888e1ec385190d4e240f40702bfde83456b79ff1"
CACHE = Path(__file__).parents[2] / ".cache" / f"consecution-{VERSION}"
ARCHIVE = CACHE / f"consecution-{VERSION}.tar.gz"
ROOT = CACHE / "unpacked"
"""The folder to import 0.2.0 from."""
DOWNLOAD_TIMEOUT_S = 90


class Unavailable(Exception):
    """The index cannot be reached."""


def provide() -> Path:
    """The folder that holds the package of 0.2.0. Unavailable if it is neither here nor to be had."""
    if not ARCHIVE.is_file():
        _download()
    found = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{ARCHIVE}: expected the archive with SHA-256 {SHA256}, found {found}; delete it")
    if not ROOT.is_dir():
        _unpack()
    return ROOT


def _download() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "consecution"]
    try:
        subprocess.run(
            [*command, f"consecution=={VERSION}", "--dest", str(CACHE)],
            check=True,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"pip cannot download consecution {VERSION}: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip did not download consecution {VERSION} in {DOWNLOAD_TIMEOUT_S} s") from error


def _unpack() -> None:
    prefix = f"consecution-{VERSION}/"
    partial = ROOT.with_suffix(".partial")
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            inside = archive.extractfile(member)
            if inside is None or not member.name.endswith(".py"):
                continue
            path = partial / member.name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(inside.read())
    partial.rename(ROOT)
