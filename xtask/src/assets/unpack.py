"""Checks an archive's SHA-256 and takes some of its files out.

usage: unpack.py ARCHIVE SHA256 DEST (PATTERN FOLDER)...

ARCHIVE is a wheel (zip), a tar of any compression, or a folder (an unpacked Debian package). For a folder, SHA256 is
that of its wanted files' listing, "SHA256  PATH" a line in order of path, since Debian packs the same files anew (or `any`).
A file that PATTERN names (`*` matches any text, `/` too) goes to DEST/FOLDER, with its path below the last folder
that PATTERN spells out. Every pattern must match something.
"""

import fnmatch
import hashlib
import os
import shutil
import stat
import sys
import tarfile
import zipfile


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def members(archive):
    """Yields (name, mode, opener) of each regular file."""
    if os.path.isdir(archive):
        for folder, _, files in os.walk(archive):
            for name in files:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    yield os.path.relpath(path, archive), os.stat(path).st_mode, lambda p=path: open(p, "rb")
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for info in z.infolist():
                if not info.is_dir():
                    yield info.filename, info.external_attr >> 16, lambda i=info: z.open(i)
    else:
        with tarfile.open(archive) as t:
            for info in t:
                if info.isreg():
                    yield info.name, info.mode, lambda i=info: t.extractfile(i)


def destination(name, takes):
    for pattern, folder in takes:
        if fnmatch.fnmatchcase(name, pattern):
            fixed = pattern.split("*")[0].rpartition("/")[0]
            # A pattern that begins with `*` spells out no folder: what it matches keeps its file name only.
            below = name[len(fixed) :].lstrip("/") if fixed else os.path.basename(name)
            return pattern, os.path.normpath(os.path.join(folder, below))
    return None, None


def main(archive, want, dest, *rest):
    takes = list(zip(rest[::2], rest[1::2]))
    if not os.path.isdir(archive):
        found = sha256(archive)
        if found != want:
            sys.exit(f"{os.path.basename(archive)} has SHA-256 {found}, expected {want}")
    unmatched = {pattern for pattern, _ in takes}
    listing = []
    for name, mode, opener in members(archive):
        pattern, relative = destination(name, takes)
        if pattern is None:
            continue
        unmatched.discard(pattern)
        if relative.startswith("..") or os.path.isabs(relative):
            sys.exit(f"{name} would be written outside of the destination")
        path = os.path.join(dest, relative)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with opener() as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.chmod(path, 0o755 if mode & stat.S_IXUSR else 0o644)
        listing.append(path)
    if unmatched:
        sys.exit(f"{os.path.basename(archive)} has nothing named {', '.join(sorted(unmatched))}")
    if os.path.isdir(archive):
        lines = sorted((os.path.relpath(path, dest), sha256(path)) for path in listing)
        text = "".join(f"{digest}  {path}\n" for path, digest in lines)
        found = hashlib.sha256(text.encode()).hexdigest()
        if found != want != "any":
            sys.exit(f"the files have listing SHA-256 {found}, expected {want}:\n{text}")


main(*sys.argv[1:])
