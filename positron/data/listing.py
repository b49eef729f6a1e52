"""List the files of a data path: one file, a folder with its sub-folders, or a pattern such as `texts/*.txt`."""

from __future__ import annotations

import difflib
import errno
import glob
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from positron.run.paths import CONFIG, FACTS, JOB, METRICS
from positron.system.console import one_line
from positron.system.disk import expanded, read_json, refuse_lfs_pointer
from positron.system.errors import UserError

# Suffix -> format. A suffix may be in upper case. Except for .parquet, it may be followed by one of COMPRESSED. A file with
# another suffix is read as plain text if it looks like text.
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".text": "text",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".zst")
# Files that Dataset.save_to_disk writes beside its .arrow files, and DatasetDict.save_to_disk above its splits' folders.
STATE_FILE = "state.json"  # names the .arrow files of the dataset
DATASET_FILES = ("dataset_info.json", STATE_FILE)
SPLITS_FILE = "dataset_dict.json"
CHECK_SPELLING = "; check the spelling of the path"
MAX_NAMES = 3  # number of skipped files that are named for each reason


@dataclass
class Listing:
    """Hold the files to read, sorted by name, and the names of the skipped files by reason."""

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # reason -> names

    def skip(self, path: Path, reason: str) -> None:
        """Record that a file is not read, and why."""
        self.skipped.setdefault(reason, []).append(path.name)

    def describe_skipped(self) -> str:
        """Return one line with the skipped files and the reasons, or an empty string if no file was skipped."""
        parts = []
        for reason, names in sorted(self.skipped.items()):
            remainder = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
            parts.append(f"{', '.join(one_line(name, 80) for name in sorted(names)[:MAX_NAMES])}{remainder} ({reason})")
        return "; ".join(parts)


def format_of(path: Path) -> str | None:
    """Return the format of a file by its suffix, such as "text", "json lines" or "csv", or None for an unknown suffix."""
    return FORMATS.get(_inner_suffix(path))


def delimiter_of(path: Path) -> str:
    """Return the character that separates the cells of a .csv or .tsv file."""
    return "\t" if _inner_suffix(path) == ".tsv" else ","


def compression_of(path: Path) -> str | None:
    """Return the compression of a file by its suffix: "gzip", "zstd" or None."""
    match path.suffix.lower():
        case ".gz":
            return "gzip"
        case ".zst":
            return "zstd"
        case _:
            return None


def _inner_suffix(path: Path) -> str:
    return (path.with_suffix("").suffix if path.suffix.lower() in COMPRESSED else path.suffix).lower()


def list_files(path: str, label: str | None = None, suffixes: Collection[str] = tuple(FORMATS)) -> Listing:
    """List the files of a path: one file, a folder with its sub-folders, or a pattern.

    `label`: the path's name in messages. `suffixes`: the suffixes of the files that are taken from a folder. If a file with the
    name `path` exists, the characters *, ? and [ in the name are not read as a pattern. In a folder, hidden files, files with
    other suffixes and the folders of Positron's runs are skipped, and a sub-folder to which several links lead is read once.
    Raises UserError if no file is left, if the path cannot be read, or if a file is a pointer of git-lfs instead of the data.
    """
    label = one_line(label or path)
    if not path:
        raise UserError(f"{label or 'the path'} is empty: give a file or a folder (. is the current folder)")
    if is_text(path):
        raise UserError(
            f"{one_line(label, 80)} is a text, not the path of a file: save the text in a file, and give the path of this file"
        )
    given = expanded(path)
    try:
        if given.is_dir():
            listing = _list_folder(given, suffixes)
            known = ", ".join(suffixes)
            message = f"{label} contains no file to read: give a folder with files that end in {known} (also with .gz or .zst)"
        elif given.exists():
            if not given.is_file():
                raise UserError(
                    f"{label} is not a regular file: give a file or a folder (first save the data of a pipe to a file)"
                )
            listing, message = Listing([given]), ""
        elif any(mark in path for mark in "*?["):
            listing = _list_pattern(given)
            message = (
                f"{label} was read as a pattern, and no readable file matches it: give a file, folder or other pattern"
            )
        elif given.is_symlink():
            raise UserError(f"cannot read {label}: it is a link to a missing file, {one_line(os.readlink(given))}")
        elif path.startswith(("http://", "https://")):
            raise UserError(
                f"{label} is an address, not a file: to download a text, give data.url= instead of data.path="
            )
        else:
            raise UserError(f"cannot read {label}: No such file or directory{CHECK_SPELLING}{_similar_file(given)}")
        for file in listing.files:
            refuse_lfs_pointer(file)
            _refuse_compressed_parquet(file)
    except OSError as error:
        raise UserError(f"cannot read {label}: {error.strerror or error}") from error
    if not listing.files:
        skipped = listing.describe_skipped()
        raise UserError(message + (f"; skipped: {skipped}" if skipped else ""))
    return listing


def is_text(path: str) -> bool:
    """Tell whether `path` is a text of several lines, or too long for a path, and not the path of an existing file."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG or "\n" in path
    return False


def _similar_file(missing: Path) -> str:
    """Return a question that names the file or folder whose name is most similar to a missing path; empty if there is none."""
    try:
        names = [entry.name for entry in os.scandir(missing.parent) if not entry.name.startswith(".")]
    except OSError:
        return ""
    similar = difflib.get_close_matches(missing.name, names, 1, 0.6)
    return f": did you mean {one_line(str(missing.with_name(similar[0])))}?" if similar else ""


def _refuse_compressed_parquet(path: Path) -> None:
    """Raise UserError if a Parquet file is compressed as a whole, because its reader jumps to any part of the file."""
    if format_of(path) == "parquet" and (compression := compression_of(path)):
        program = {"gzip": "gunzip", "zstd": "unzstd"}[compression]
        raise UserError(
            f"cannot read {one_line(str(path))} while it is compressed by {compression}: run {program} on it first"
        )


def _list_folder(root: Path, suffixes: Collection[str]) -> Listing:
    listing = Listing()
    for path in _walk(root, root, {_identity(root.stat())}, listing):
        if _inner_suffix(path) not in suffixes:
            listing.skip(path, "another format")
        else:
            listing.files.append(path)
    _skip_copies(listing)
    return listing


def _list_pattern(pattern: Path) -> Listing:
    listing = Listing()
    for path in sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=by_name):
        if not path.exists():
            listing.skip(path, "a link to a missing file")
        elif any(_is_run_folder(folder) for folder in path.parents):
            listing.skip(path, "part of a run")
        elif path.is_file():
            if format_of(path) is None and path.suffix.lower() not in COMPRESSED and not looks_like_text(path):
                listing.skip(path, "not text")
            else:
                listing.files.append(path)
    _skip_copies(listing)
    return listing


def by_name(path: PurePath) -> tuple[str, ...]:
    """Return a sort key for paths that gives the same order on every system.

    Comparing the paths themselves gives another order on Windows, because paths are compared there without regard to case.
    """
    return path.parts


def _skip_copies(listing: Listing) -> None:
    """Sort the files of `listing` by name, and skip links to other files of `listing`.

    Empty files are skipped, too, if they are compressed, Parquet or Arrow files.
    """
    real_paths = {path.resolve() for path in listing.files if not path.is_symlink()}
    files = []
    for path in sorted(listing.files, key=by_name):
        if path.is_symlink() and path.resolve() in real_paths:
            listing.skip(path, "a link to a file that is read already")
        elif path.stat().st_size == 0 and (compression_of(path) or format_of(path) in ("parquet", "arrow")):
            listing.skip(path, "empty")
        else:
            files.append(path)
    listing.files = files


def _walk(folder: Path, root: Path, seen: set[tuple[int, int]], listing: Listing) -> Iterator[Path]:
    """Yield the regular files below `folder`; record in `listing` the files and folders that are skipped.

    `root`: the folder in which the search began. `seen`: the folders that were searched already, as pairs (device, inode). The
    call adds to `seen` the folders that it searches.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        listing.skip(folder, error.strerror or "cannot be read")
        return
    names = {entry.name for entry in entries}
    metadata = {*DATASET_FILES, SPLITS_FILE} if names.issuperset(DATASET_FILES) or SPLITS_FILE in names else set()
    has_train_split = SPLITS_FILE in names and "train" in names
    arrow_files = {name for name in names if _inner_suffix(Path(name)) == ".arrow"}
    is_dataset = names.issuperset(DATASET_FILES) and bool(arrow_files)
    unsaved = arrow_files - _saved_files(folder, names) if is_dataset else set()
    for entry in entries:
        path = Path(entry.path)
        if entry.name in metadata:
            continue
        if entry.name in unsaved:
            listing.skip(path, f"not part of the dataset that {STATE_FILE} describes")
            continue
        if entry.name.startswith("."):
            listing.skip(path, "hidden")
            continue
        try:
            facts = path.stat()  # entry.stat() has no inode on Windows
        except OSError as error:
            listing.skip(path, "a link to a missing file" if entry.is_symlink() else error.strerror or "unreadable")
            continue
        if not stat.S_ISDIR(facts.st_mode):
            if stat.S_ISREG(facts.st_mode):
                yield path
            else:
                listing.skip(path, "not a regular file")
        elif _is_run_folder(path):
            listing.skip(path, "run folders")
        elif has_train_split and entry.name != "train":
            listing.skip(path, "not the split train")
        elif entry.is_symlink() and _is_read_anyway(path, root):
            listing.skip(path, "a link to a folder that is read already")
        elif _identity(facts) not in seen:
            seen.add(_identity(facts))
            yield from _walk(path, root, seen, listing)
        else:
            listing.skip(path, "a link to a folder that is read already")


def _saved_files(folder: Path, names: Collection[str]) -> set[str]:
    """Return the names of the files of a dataset that `Dataset.save_to_disk` wrote into `folder`, as state.json lists them.

    The folder may also hold .arrow files of an earlier save, and those in which `Dataset.map` keeps its results. `names`: the
    names of all files in the folder. Raises UserError if state.json is damaged, or if it names a file that is not there.
    """
    path = folder / STATE_FILE
    state = read_json(path.resolve())
    try:
        saved = [file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError):
        saved = []
    if not saved or not all(isinstance(name, str) for name in saved):
        raise UserError(
            f"{one_line(str(path))} does not list the files of its dataset: save the dataset again, or give the files as a "
            "pattern that ends in data-*.arrow"
        )
    if missing := sorted(set(saved).difference(names)):
        raise UserError(
            f"{one_line(str(path))} names {one_line(missing[0], 80)}, which is not in its folder: copy or save the dataset "
            "again"
        )
    return set(saved)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _is_read_anyway(link: Path, root: Path) -> bool:
    """Tell whether the search in the folder `root` must not follow `link`, a link to a folder.

    Returns True if the link leads to `root` or to a folder inside `root`, because all files of `root` are read anyway. Also
    returns True if the link leads to a folder that contains the link, because the search would come back to the link.
    """
    target = link.resolve()
    return target.is_relative_to(root.resolve()) or link.parent.resolve().is_relative_to(target)


def _is_run_folder(path: Path) -> bool:
    """Tell whether Positron wrote a folder: the folder of a run, or `outputs/` with runs, sweeps or prepared corpora."""
    if (path / CONFIG).is_file() and any((path / name).exists() for name in (FACTS, METRICS)):
        return True
    if path.name != "outputs":
        return False
    own_files = {FACTS, "tokens.json", JOB, "progress.json"}
    return any(own_files & set(names) for _, _, names in os.walk(path))


def looks_like_text(path: Path) -> bool:
    """Tell whether the first 8 KiB of a file are UTF-8 without zero bytes and not the beginning of a known binary format."""
    with path.open("rb") as file:
        head = file.read(8192)
    return b"\0" not in head and describe_binary(head, path) is None and _is_utf8_prefix(head)


def _is_utf8_prefix(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(head) and len(head) - error.start < 4 and len(head) == 8192
    return True


_MAGIC = {
    b"%PDF-": "a PDF: extract its text first, with pdftotext for instance",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: let its name end in .zst",
    b"BZh": "compressed by bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "compressed by xz: unpack it with unxz",
    b"7z\xbc\xaf": "a 7-zip archive: unpack it",
    b"PAR1": "a parquet file: let its name end in .parquet",
    b"ARROW1": "an Arrow file: let its name end in .arrow",
    b"{\\rtf": "rich text: save it as plain text",
    b"\xd0\xcf\x11\xe0": "an old Office document: save it as plain text",
}


_WORD_PROCESSOR = "a document of a word processor"
_ZIPPED_DOCUMENTS = {".docx": _WORD_PROCESSOR, ".odt": _WORD_PROCESSOR, ".epub": "an e-book"}


def describe_binary(head: bytes, path: Path) -> str | None:
    """Return the kind of the binary file `path`, which begins with the bytes `head`, and advice on how to read it.

    Returns None if the kind is unknown.
    """
    if head.startswith(b"PK\x03\x04") and path.suffix.lower() in _ZIPPED_DOCUMENTS:
        return f"{_ZIPPED_DOCUMENTS[path.suffix.lower()]}: save it as plain text (.txt)"
    return next((description for magic, description in _MAGIC.items() if head.startswith(magic)), None)
