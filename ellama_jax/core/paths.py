"""What a path is: a place on a local disk, or one in a bucket of Google Cloud Storage (gs://).

Owns telling the two apart and the file operations that differ between them. A local path stays a
`pathlib.Path`; one in a bucket is an `etils.epath.Path`, which has the same methods. What is kept
at a path is no business of this module.

A bucket has no directories and renames nothing: an object is replaced whole by writing it, and a
"directory" exists while an object's name begins with it. So what is renamed into place on a disk
is written straight into place in a bucket, the part that makes it valid last.
"""

import asyncio
import contextlib
import errno
import functools
import io
import logging
import os
import random
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_SCHEME = "gs://"
_BLOCK_BYTES = 2**22
# Of what another directory takes the place of, before the number of the process.
_ASIDE = ".ellama-old-"

# Of reads from a bucket: how many wait for their answers at once; when an answer is late and when it
# is lost, beside what its bytes take on a slow line; and for how long the bucket may be out of reach.
# A pod that starts anew loses more than that.
_IN_FLIGHT = asyncio.Semaphore(64)
_LATE_SECS = 1.0
_LOST_SECS = 45.0  # gcsfs itself tries six times in 30 s
_SLOW_BYTES_PER_SEC = 2**23
_LONGEST_WAIT_SECS = 16.0
_PATIENCE_SECS = 300.0

# etils would take TensorFlow to reach a bucket where it finds it. A host that trains imports none,
# and one way to a bucket is tested: gcsfs.
os.environ.setdefault("EPATH_USE_TF", "false")


def as_path(path: str | os.PathLike) -> Path:
    """Returns `path` as an object with pathlib's methods, wherever it lies.

    The first path in a bucket asks whether the bucket can be reached, so that what is missing in it
    later is really missing.

    Args:
        path: local, or `gs://bucket/directory`.

    Returns:
        A `pathlib.Path`, or an `etils.epath.Path` in a bucket.

    Raises:
        ValueError: if it is a URL of another kind, names no place in a bucket, or the bucket cannot
            be reached.

    >>> as_path("runs/base").name
    'base'
    """
    text = os.fspath(path)
    if not is_remote(text):
        if "://" in text or text.startswith("gs:/"):
            raise ValueError(f"{text}: must be a local path or begin with {_SCHEME}, got neither.")
        return Path(text)
    bucket, _, place = text.removeprefix(_SCHEME).partition("/")
    if not bucket or not place.strip("/"):
        raise ValueError(
            f"{text}: must name a bucket and a place in it, as gs://bucket/run, got no "
            f"{'place' if bucket else 'bucket'}."
        )
    _reach(bucket)
    from etils import epath

    return epath.Path(text.rstrip("/"))


def is_remote(path: str | os.PathLike) -> bool:
    """Tells whether a path lies in a bucket.

    >>> is_remote("gs://bucket/run"), is_remote("runs/base")
    (True, False)
    """
    return os.fspath(path).startswith(_SCHEME)


def local_path(path: str | os.PathLike, name: str) -> Path:
    """Returns `path`, which must be on a local disk because it is mapped into memory or written at.

    Raises:
        ValueError: if it is in a bucket; `name` says what it was given for.
    """
    if is_remote(path):
        raise ValueError(
            f"{name}: must be on a local disk, got {path}; copy it to one first, as with "
            "`gcloud storage cp -r`."
        )
    return as_path(path)


def absolute(path: Path) -> Path:
    """Returns a path that does not depend on the working directory; in a bucket all are such."""
    return path if is_remote(path) else path.absolute()


def name_inside(directory: Path, name: str, file: str) -> str:
    """Returns a name that a file gives for something in its directory, which it must not lead out of.

    Args:
        directory: that the name is of.
        name: as `file` has it; parts are separated by `/`.
        file: which gives the name; what is to be mended.

    Raises:
        ValueError: if it is absolute, climbs by `..`, or is no name at all.
    """
    if isinstance(name, str):
        parts = PurePosixPath(name).parts
        if parts and parts[0] != "/" and ".." not in parts and not {"\\", "\0"} & set(name):
            return name
    raise ValueError(f"{directory / file}: must name files inside {directory}, got {name!r}.")


def check_links(directory: Path) -> None:
    """Refuses a directory from elsewhere whose links would have other files read, or published.

    A link may lead to a file of the directory itself. The Hugging Face hub's cache links a snapshot's
    files to the blobs beside it; these are the model's own.

    Raises:
        ValueError: if a link leads elsewhere, or an entry is neither file nor directory.
    """
    if is_remote(directory):
        return  # a bucket has no links
    root = directory.resolve()
    homes = [root]
    if (snapshots := next((p for p in root.parents if p.name == "snapshots"), None)) is not None:
        homes.append(snapshots.parent / "blobs")
    for folder, folders, files in os.walk(root):
        for path in (Path(folder) / name for name in (*folders, *files)):
            kind = path.lstat().st_mode
            if stat.S_ISLNK(kind):
                target = path.resolve()
                if not any(target.is_relative_to(home) for home in homes):
                    raise ValueError(
                        f"{directory / path.relative_to(root)}: must be no link out of its directory, "
                        f"got one to {target}; put a copy there if it belongs to the model."
                    )
            elif not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise ValueError(
                    f"{directory / path.relative_to(root)}: must be a file or a directory, got "
                    "something else; remove it."
                )


@functools.cache
def _reach(bucket: str) -> None:
    """Raises a ValueError that says why a bucket cannot be used, if so."""
    try:
        _file_system().call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except ValueError:
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{_SCHEME}{bucket}: must exist, got no such bucket.") from error
    except Exception as error:  # gcsfs, aiohttp and google-auth each have their own
        raise ValueError(
            f"{_SCHEME}{bucket}: must be a bucket that can be read, got: {_in_one_line(error)}; are "
            "there credentials for it (`gcloud auth application-default login`)?"
        ) from error


@functools.cache
def _file_system():
    """Returns gcsfs's file system, the same that etils uses."""
    import fsspec

    # TensorStore writes too, and so do other hosts: a remembered listing would be a wrong one.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # What it cannot reach is said by _reach, in one line; it would print a traceback before.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem("gcs")
    except ImportError as error:
        raise ValueError(
            f"{_SCHEME}: paths in a bucket need gcsfs, got none; `pip install gcsfs`."
        ) from error


# --- files ---------------------------------------------------------------------------------------


def file_bytes(path: Path) -> int:
    """Returns the size of a file."""
    return path.stat().length if is_remote(path) else path.stat().st_size


def directory_bytes(path: Path) -> int:
    """Returns the size of all files below a directory."""
    entries = path.iterdir() if path.is_dir() else ()
    return sum(directory_bytes(e) if e.is_dir() else file_bytes(e) for e in entries)


def file_sizes(directory: Path) -> dict[str, int]:
    """Returns the bytes of each file directly in a directory, by name; in a bucket by one listing.

    A directory that is not there has no files.
    """
    if is_remote(directory):
        try:
            entries = _file_system().ls(os.fspath(directory), detail=True)
        except FileNotFoundError:
            return {}
        files = [entry for entry in entries if entry["type"] == "file"]
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in files}
    if not directory.is_dir():
        return {}
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def read_if_there(path: Path) -> bytes | None:
    """Reads a file whole, in a bucket by one request; None if there is none."""
    try:
        return _file_system().cat_file(os.fspath(path)) if is_remote(path) else path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def read_version(path: Path) -> tuple[bytes, str | None]:
    """Reads an object of a bucket and the version that it is; empty and None if there is none."""
    bucket, name = _object(path)
    try:
        found = _file_system().call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        return _file_system().cat_file(os.fspath(path)), str(found["generation"])
    except FileNotFoundError:
        return b"", None


def write_if(path: Path, content: bytes, version: str | None) -> str | None:
    """Writes an object if it is still the one that was read (None: if there is none).

    Returns:
        the new version, None where another one was quicker.
    """
    bucket, name = _object(path)
    files = _file_system()
    try:
        found = files.call(
            "POST", f"{files._location}/upload/storage/v1/b/{bucket}/o", uploadType="media",
            name=name, ifGenerationMatch=version or "0", data=content, json_out=True,
        )  # fmt: skip
    except FileExistsError:
        return None
    return str(found["generation"])


def delete_if(path: Path, version: str) -> None:
    """Deletes an object if it is still the one that was written."""
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        _file_system().call("DELETE", "b/{}/o/{}", *_object(path), ifGenerationMatch=version)


def _object(path: Path) -> tuple[str, str]:
    bucket, _, name = os.fspath(path).removeprefix(_SCHEME).partition("/")
    return bucket, name


def read_range(path: str | os.PathLike, start: int, stop: int) -> bytes:
    """Reads bytes `start` to `stop` of a file, and no others; see `read_ranges`."""
    return read_ranges([(path, start, stop)])[0]


def read_ranges(ranges: Sequence[tuple[str | os.PathLike, int, int]]) -> list[bytes]:
    """Reads parts of files, those in a bucket all at once; no file stays open.

    A bucket that is slow, busy or out of reach is asked again, for some minutes.

    Args:
        ranges: path, first byte and the byte after the last of each part; of a file that ends before
            there are fewer bytes.

    Raises:
        OSError: naming the file that cannot be read, and why; a ConnectionError where another try
            may succeed.
    """
    remote = [r for r in ranges if is_remote(r[0])]
    if not remote:
        return [_read_local(*r) for r in ranges]
    from fsspec.asyn import sync

    files = _file_system()
    found = iter(sync(files.loop, _read_all, files, remote))
    return [next(found) if is_remote(r[0]) else _read_local(*r) for r in ranges]


def _read_local(path: str | os.PathLike, start: int, stop: int) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, stop - start, start)
    finally:
        os.close(file)


async def _read_all(files, ranges: Sequence[tuple]) -> list[bytes]:
    return await asyncio.gather(*(_read_patiently(files, *r) for r in ranges))


async def _read_patiently(files, path: str | os.PathLike, start: int, stop: int) -> bytes:
    """Reads a part of an object, again while there is hope."""
    from gcsfs.retry import is_retriable

    name, began, tries = os.fspath(path), time.monotonic(), 0
    while True:
        try:
            async with _IN_FLIGHT:
                return await _first_answer(files, name, start, stop)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        except Exception as error:
            reason = _in_one_line(error)
            if not (is_retriable(error) or isinstance(error, (TimeoutError, ConnectionError))):
                raise OSError(f"{name}: must be readable, got: {reason}.") from error
        # Hosts that failed together must not come back together.
        wait, tries = random.uniform(0.5, 1.0) * min(2.0**tries, _LONGEST_WAIT_SECS), tries + 1
        secs = time.monotonic() - began
        if secs + wait > _PATIENCE_SECS:
            raise ConnectionError(
                f"{name}: must be readable, got no good answer for {secs:.0f} s, at last: {reason}."
            )
        await asyncio.sleep(wait)


async def _first_answer(files, name: str, start: int, stop: int) -> bytes:
    """Asks a second time when the answer is late: of many connections some are slow or dead."""
    asked: set[asyncio.Task] = set()
    slack = (stop - start) / _SLOW_BYTES_PER_SEC
    try:
        for secs in (_LATE_SECS + slack, min(_LOST_SECS, _PATIENCE_SECS) + slack):
            asked.add(asyncio.ensure_future(files._cat_file(name, start=start, end=stop)))
            done, _ = await asyncio.wait(asked, timeout=secs, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done.pop().result()
        raise TimeoutError(f"no answer in {secs:.0f} s")
    finally:
        for task in asked:
            task.cancel()


def _in_one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")


@contextlib.contextmanager
def open_whole(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yields a file to write; it is at `path` whole, in place of what was there, or not at all.

    Args:
        private: nobody else on this machine may read it. A bucket has its own rights.
    """
    if is_remote(path):
        # Sent at once: gcsfs's own files come to be there as far as they were written.
        with io.BytesIO() as file:
            yield file
            _file_system().pipe_file(os.fspath(path), file.getvalue())
        return
    # Not this process's number: another machine may have one of the same, and write here too.
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in place of what is there."""
    with open_whole(path) as file:
        file.write(text.encode())


def remove_left_over(dst: Path) -> None:
    """Removes what killed processes of this machine were writing beside `dst`, to be renamed to it.

    They are named `.NAME.partial-PID`; those of processes that live stay. What one of them had set aside,
    and had nothing to put in its place yet, comes back.
    """
    if is_remote(dst) or not dst.parent.is_dir():
        return
    for path in sorted(dst.parent.iterdir()):
        for start in (f".{dst.name}.partial-", f".{dst.name}{_ASIDE}"):
            number = path.name.removeprefix(start)
            if path.name.startswith(start) and number.isdecimal() and not _is_alive(int(number)):
                if start.endswith(_ASIDE) and not dst.exists():
                    os.replace(path, dst)
                else:
                    remove_tree(path)


def replace_directory(src: Path, dst: Path) -> None:
    """Moves `src` to `dst`, in place of what is there, which goes only when the new one stands."""
    aside = dst.with_name(f".{dst.name}{_ASIDE}{os.getpid()}")
    if dst.exists() or dst.is_symlink():
        os.replace(dst, aside)
    try:
        os.replace(src, dst)
    except OSError:
        if aside.exists():
            os.replace(aside, dst)
        raise
    remove_tree(aside)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def copy_file(src: Path, dst: Path) -> None:
    """Copies a file from anywhere to anywhere."""
    with src.open("rb") as source, dst.open("wb") as target:
        shutil.copyfileobj(source, target, _BLOCK_BYTES)


def copy_tree(src: Path, dst: Path) -> None:
    """Copies a directory from anywhere to anywhere, over what is there."""
    dst.mkdir(parents=True, exist_ok=True)
    for entry in sorted(src.iterdir()):
        (copy_tree if entry.is_dir() else copy_file)(entry, dst / entry.name)


def move_tree(src: Path, dst: Path) -> None:
    """Renames a directory; in a bucket, which has no renames, object by object within it."""
    if is_remote(src):
        _file_system().mv(os.fspath(src), os.fspath(dst), recursive=True)
    else:
        os.replace(src, dst)


def remove_tree(path: Path) -> None:
    """Removes a directory, as far as it is there and can be removed."""
    if not is_remote(path):
        if path.is_symlink():
            path.unlink()  # and what it leads to is not ours
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.rmtree(missing_ok=True)
