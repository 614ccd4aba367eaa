"""Writing files whole or not at all, sizes in words, and safetensors files."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from neox_lab.errors import CheckpointError, ConfigError, HookError
from neox_lab.files import (
    read_json,
    reserve,
    set_aside,
    staged_file,
    staged_files,
    write_bytes,
    write_text,
)
from neox_lab.interrupts import held
from neox_lab.safetensors_files import DTYPES, FileFormat, layout, write
from neox_lab.sizes import parse_size, size_in_words

# --- files --------------------------------------------------------------------------------------


def _start_to_write(path: Path, error: BaseException) -> None:
    with staged_file(path) as temporary:
        temporary.write_text("half of the n")
        assert temporary.parent == path.parent, "a rename must not cross file systems"
        raise error


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit(), OSError()])
@pytest.mark.parametrize("existed", [True, False])
def test_an_interrupt_leaves_what_was_there(
    tmp_path: Path, error: BaseException, existed: bool
) -> None:
    path = tmp_path / "result.json"
    if existed:
        path.write_text("old")
    with pytest.raises(type(error)):
        _start_to_write(path, error)
    assert [entry.name for entry in tmp_path.iterdir()] == (["result.json"] if existed else [])
    assert not existed or path.read_text() == "old"


def _write_and_be_interrupted(path: Path) -> None:
    with staged_file(path) as temporary, temporary.open("wb") as file:
        file.write(b"new")
        signal.raise_signal(signal.SIGINT)


def test_a_signal_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt):
        _write_and_be_interrupted(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to make files larger than ``size``, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def _write_two(first: Path, content: bytes, second: Path, other: bytes) -> None:
    with staged_files() as stage:
        stage(first).write_bytes(content)
        stage(second).write_bytes(other)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    write_bytes(path, b"old")
    with _largest_file(1000):
        with pytest.raises(OSError, match="too large"):
            write_bytes(path, bytes(5000))
        with pytest.raises(CheckpointError, match=r"Cannot write the toy to .*too large"):
            FileFormat("toy", "toy 1").write(path, {"a": torch.zeros(5000)}, {})
        with pytest.raises(OSError, match="too large"):
            _write_two(tmp_path / "first", b"fits", path, bytes(5000))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_content_is_on_disk_before_any_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: steps.append("rename") or replace(a, b))
    with staged_files() as stage:
        stage(tmp_path / "a").write_text("a")
        stage(tmp_path / "b").write_text("b")
        assert not (tmp_path / "a").exists()
    assert steps == ["fsync", "fsync", "rename", "rename"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a.safetensors"
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "a")
        FileFormat("toy", "toy 1").write(path, {"a": torch.ones(2)}, {})
    finally:
        os.umask(before)
    for written in tmp_path.iterdir():
        assert stat.S_IMODE(written.stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(Path("far") / "target")
    write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "far" / "target").read_text() == "new"
    dangling = tmp_path / "dangling"
    dangling.symlink_to("later")
    write_text(dangling, "made")
    assert dangling.is_symlink() and (tmp_path / "later").read_text() == "made"
    assert len(list((tmp_path / "far").iterdir())) == 1


def test_who_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3)}, path)
    mapped = load_file(path)["a"]
    save = FileFormat("toy", "toy 1").write
    save(path, {"a": mapped + 1}, {})
    assert torch.equal(mapped, torch.ones(3)) and torch.equal(load_file(path)["a"], mapped + 1)


@pytest.mark.parametrize("name", ["über ⟨é⟩ 測試.json", "x" * 255, "測" * 85, ".hidden", "a b'\""])
def test_any_name_that_the_system_takes(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "Grüße")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "Grüße"


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    contents = {bytes([65 + n]) * 100_000 for n in range(8)}
    seen: set[bytes] = set()

    def work(content: bytes) -> None:
        for _ in range(10):
            write_bytes(path, content)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= contents and path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a", "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# --- sizes --------------------------------------------------------------------------------------

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@given(
    st.integers(0, 10**6),
    st.sampled_from(list(_POWERS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_sizes_are_read_exactly(n: int, letter: str, binary: bool, space: bool, low: bool) -> None:
    unit = f"{letter}iB" if binary and letter else f"{letter}B"
    text = f"{n}{' ' if space else ''}{unit.lower() if low else unit}"
    base = 1024 if binary else 1000
    assert parse_size(text, "budget", HookError) == n * base ** _POWERS[letter]


@given(st.integers(0, 999 * 10**15))
def test_sizes_in_words_are_read_back(size: int) -> None:
    assert parse_size(size, "budget", HookError) == size == parse_size(str(size), "b", HookError)
    words = size_in_words(size)
    assert parse_size(words, "budget", HookError) == pytest.approx(size, rel=0.005, abs=0)
    assert sum(character.isdigit() for character in words) <= 4 and "e" not in words


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (999_600, "1 MB"), (1.5e9, "1.5 GB")],
)
def test_sizes_in_words(size: float, words: str) -> None:
    assert size_in_words(size) == words


@given(st.text(string.ascii_letters + " .-+", max_size=6) | st.none() | st.booleans())
@pytest.mark.parametrize("error", [HookError, ConfigError])
def test_no_sizes(error: type[HookError | ConfigError], size: str) -> None:
    with pytest.raises(error, match=r"budget=.*is not a size"):
        parse_size(size, "budget", error)


@pytest.mark.parametrize("size", [-1, "-1", "1e3", "nan", "inf", "1.", ".5", "1 2", "3 i", "5BB"])
def test_no_sizes_with_digits(size: int | str) -> None:
    with pytest.raises(HookError, match="is not a size"):
        parse_size(size, "budget", HookError)


# --- safetensors --------------------------------------------------------------------------------

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)
_SPECS = st.dictionaries(
    _NAMES,
    st.tuples(
        st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from(list(DTYPES.values()))
    ),
    max_size=6,
)


def _filled(specs: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    return {name: torch.randint(0, 100, shape).to(dtype) for name, (shape, dtype) in specs.items()}


@given(_SPECS, st.dictionaries(_NAMES, st.text(st.characters(exclude_categories=["Cs"]))))
def test_the_format_s_own_library_reads_ours(
    tmp_path_factory: pytest.TempPathFactory,
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    tensors = _filled(specs)
    write(path, tensors, metadata)
    read: dict[str, Tensor] = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == metadata
    plan = layout(specs, metadata)
    assert path.stat().st_size == plan.size
    for name, (_, dtype) in specs.items():
        assert plan.offsets[name] % dtype.itemsize == 0, "mapped tensors must be aligned"


@given(_SPECS)
def test_ours_reads_what_the_library_writes(
    tmp_path_factory: pytest.TempPathFactory,
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    path = tmp_path_factory.mktemp("r") / "a.safetensors"
    tensors = _filled(specs)
    toy = FileFormat("toy", "toy 1")
    save_file(tensors, path, toy.metadata({"words": ["ü", None, 1.5]}))
    read, description = toy.read(path)
    assert description == {"words": ["ü", None, 1.5]} and read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    for tensors in ({"a": torch.ones(1, dtype=torch.complex128)}, {"__metadata__": torch.ones(1)}):
        with pytest.raises(CheckpointError, match="cannot be stored"):
            write(tmp_path / "a", tensors, {})
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    toy, path = FileFormat("toy", "toy 2"), tmp_path / "a"
    FileFormat("toy", "toy 1").write(path, {}, {})
    with pytest.raises(CheckpointError, match=r"'.*a' is a safetensors file, but not a saved toy"):
        toy.read(path)
    for description in ("[]", "{", None):
        metadata = {"neox_lab": "toy 2"} | (
            {} if description is None else {"description": description}
        )
        save_file({"a": torch.ones(1)}, path, metadata)
        with pytest.raises(CheckpointError, match="Cannot read a toy from"):
            toy.read(path)
    toy.write(path, {"a": torch.ones(9)}, {"numbers": [1, 2]})
    whole = path.read_bytes()
    for cut in (0, 4, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="Cannot read a toy from"):
            toy.read(path)
    header = int.from_bytes(whole[:8], "little")
    assert json.loads(whole[8 : 8 + header])["__metadata__"]["description"] == '{"numbers": [1, 2]}'


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "private.txt"
    path.touch(mode=0o600)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        write_text(path, "new")
    assert stat.S_ISFIFO(path.stat().st_mode)


# --- several files ------------------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def _save_three(folder: Path, age: str) -> None:
    with staged_files() as stage:
        stage.remove(folder / "stale")
        for name in ("a", "b", "index"):
            stage(folder / name).write_text(age)


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("failing", range(8))
def test_a_rename_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, failing: int, existed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existed:
        _save_three(tmp_path, "old")
        (tmp_path / "stale").write_text("old")
    before, count, replace = _contents(tmp_path), iter(range(1000)), os.replace

    def sometimes(source: Path, target: Path) -> None:
        if next(count) == failing:
            raise PermissionError(13, "no", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    renames = 7 if existed else 3
    if failing < renames:
        with pytest.raises(PermissionError):
            _save_three(tmp_path, "new")
        assert _contents(tmp_path) == before
    else:
        _save_three(tmp_path, "new")
        assert _contents(tmp_path) == dict.fromkeys(("a", "b", "index"), "new")


@pytest.mark.parametrize("moment", range(7))
def test_an_interrupt_waits_until_all_files_have_their_names(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save_three(tmp_path, "old")
    (tmp_path / "stale").write_text("old")
    count, replace = iter(range(1000)), os.replace

    def interrupting(source: Path, target: Path) -> None:
        replace(source, target)
        if next(count) == moment:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupting)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _save_three(tmp_path, "new")
    assert _contents(tmp_path) == dict.fromkeys(("a", "b", "index"), "new")
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_is_raised_in_the_end_and_nested_ones_too() -> None:
    steps = []

    def work() -> None:
        with held():
            with held():
                signal.raise_signal(signal.SIGINT)
                steps.append(1)
            steps.append(2)
        steps.append(3)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == [1, 2]
    with pytest.raises(ValueError, match="mine"), held():
        raise ValueError("mine")


def test_what_a_killed_process_left_is_found_and_goes_with_a_later_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [tmp_path / f".index.{16 * '0'}.{ending}" for ending in ("tmp", "old")]
    others = [tmp_path / name for name in (".index.old", f".indexes.{16 * '0'}.tmp", "index.tmp")]
    for path in (*left, *others):
        path.write_text("left")
    assert set_aside(tmp_path, "config", "index") == left[1]
    assert set_aside(tmp_path, "config") is None
    write_text(tmp_path / "index", "now")
    assert all(path.exists() for path in left), "somebody may be writing it this minute"
    later = time.time() + 4000
    monkeypatch.setattr(time, "time", lambda: later)
    write_text(tmp_path / "index", "later")
    assert {p.name for p in tmp_path.iterdir()} == {"index", *(path.name for path in others)}


def test_messages_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=r"nowhere'$"):
        write_text(missing / "a.txt", "a")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"not a regular file: '.*full'$"):
        write_text(tmp_path / "full", "a")
    path = tmp_path / "never written.txt"
    with pytest.raises(FileNotFoundError, match=r"never written.txt'$"), staged_file(path):
        pass


def test_nothing_in_the_hub_s_cache_is_replaced(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    blob = repository / "blobs" / "c0ffee"
    blob.parent.mkdir(parents=True)
    blob.write_text("everybody's")
    link = repository / "snapshots" / "0" / "config.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(Path("../../blobs/c0ffee"))
    write_text(link, "mine")
    assert blob.read_text() == "everybody's" and list(blob.parent.iterdir()) == [blob]
    assert not link.is_symlink() and link.read_text() == "mine"


def test_room_is_reserved_and_not_only_said_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "room"
    reserve(path, 3_000_001)
    assert path.stat().st_size == 3_000_001 and path.stat().st_blocks * 512 >= 3_000_001
    assert path.read_bytes().count(0) == 3_000_001
    with _largest_file(1000), pytest.raises(OSError, match="too large"):
        reserve(tmp_path / "more", 5000)


def test_room_is_reserved_where_the_system_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    test_room_is_reserved_and_not_only_said_to_be_there(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}", "1" * 5000],
)
def test_json_that_is_too_much_is_refused_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_json(path)


def test_a_folder_in_place_of_what_shall_go_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "index.json"
    folder.mkdir()
    (folder / "mine").write_text("x")

    def save() -> None:
        with staged_files() as stage:
            stage(tmp_path / "a").write_text("new")
            stage.remove(folder)

    with pytest.raises(OSError, match="not a regular file"):
        save()
    assert (folder / "mine").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json"]
