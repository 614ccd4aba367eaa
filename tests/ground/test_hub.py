"""Files from directories, from the hub's cache, and from a hub (a small one on 127.0.0.1)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_hub import MAIN, OTHER, STEP, Repository, SmallHub

import neox_lab as nl
from neox_lab import hub
from neox_lab.errors import CheckpointError
from neox_lab.hub import HubOptions, find_file, list_files, pin
from neox_lab.hub_answers import check_bytes

CLIENT = """
import json, sys
from neox_lab.hub import *
from neox_lab.errors import CheckpointError
import neox_lab.hub as hub
for line in sys.stdin:
    name, source, arguments, options = json.loads(line)
    try:
        answer = getattr(hub, name)(source, *arguments, hub.HubOptions(**options))
        if isinstance(answer, hub.HubOptions):
            answer = hub.dataclasses.asdict(answer)
        print(json.dumps({"answer": answer}, default=str), flush=True)
    except CheckpointError as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""


class Client:
    """A Python process of its own, because the hub's address is read from its environment."""

    def __init__(self, endpoint: str, home: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env={
                **os.environ,
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(home),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
        )

    def ask(self, name: str, source: str, *arguments: Any, **options: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, source, arguments, options]) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if "error" in reply:
            raise CheckpointError(reply["error"])
        return reply["answer"]

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def client(server: SmallHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    process = Client(server.url, tmp_path_factory.mktemp("home"))
    yield process
    process.close()


@pytest.fixture
def repository(server: SmallHub) -> Repository:
    server.down = False
    server.requests.clear()
    server.repositories["lab/model"] = Repository()
    return server.repositories["lab/model"]


def lay_out_cache(cache: Path) -> Path:
    """A cache as huggingface_hub lays it out; returns the snapshot's folder."""
    model = cache / "models--lab--model"
    snapshot = model / "snapshots" / MAIN
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True)
    (model / "blobs" / "abc").write_text('{"from": "cache"}')
    (model / "refs" / "main").write_text(MAIN)
    (model / "refs" / "step3000").write_text(STEP)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    return snapshot


# --- options and directories ----------------------------------------------------------------


def test_take_removes_only_its_own_keys() -> None:
    kwargs = {"revision": "step3000", "subfolder": None, "token": "t", "num_labels": 3}
    assert HubOptions.take(kwargs) == HubOptions(revision="step3000", token="t")
    assert kwargs == {"num_labels": 3}


def test_directory_is_read_and_huggingface_hub_never_imported(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("{}")
    program = (
        "import sys; from neox_lab.hub import HubOptions, find_file, pin;"
        f"options = pin({str(tmp_path)!r}, HubOptions(subfolder='deep'));"
        f"print(find_file({str(tmp_path)!r}, 'config.json', options));"
        "assert 'huggingface_hub' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "deep" / "config.json")


def test_missing_file_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.jsn").write_text("{}")
    assert find_file(tmp_path, "config.json", required=False) is None
    with pytest.raises(CheckpointError, match=r"config.json.*Did you mean 'config.jsn'.*holds"):
        find_file(tmp_path, "config.json")


@pytest.mark.parametrize("ask", [pin, lambda at, how: find_file(at, "config.json", how, False)])
def test_a_directory_has_no_revision_but_itself(tmp_path: Path, ask: Any) -> None:
    (tmp_path / "step1000").mkdir()
    for fine in (None, "main"):
        ask(tmp_path, HubOptions(revision=fine))
    for wrong in ("step3000", "", ".", "../x", 5):
        with pytest.raises(CheckpointError, match=r"one revision.*Leave revision= out") as caught:
            ask(tmp_path, HubOptions(revision=wrong))  # type: ignore[arg-type]
        assert repr(wrong) in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(CheckpointError) as caught:
        ask(tmp_path, HubOptions(revision="step1000"))
    assert f"give {str(tmp_path / 'step1000')!r} instead" in str(caught.value)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", ""])
def test_paths_to_nothing_never_reach_the_hub(source: str) -> None:
    with pytest.raises(CheckpointError, match="There is no directory"):
        find_file(source, "config.json")


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/EleutherAI/pythia-70m",
        "https://huggingface.co/EleutherAI/pythia-70m/",
        "https://huggingface.co/EleutherAI/pythia-70m/tree/step3000",
        "EleutherAI/pythia-70m/",
    ],
)
def test_the_address_of_a_page_is_told_from_its_id(address: str) -> None:
    with pytest.raises(CheckpointError, match=r"give the id alone: 'EleutherAI/pythia-70m'\.$"):
        find_file(address, "config.json")


@pytest.mark.parametrize("source", [5, True, ["a"], b"a", None])
def test_what_is_no_source_is_named(source: Any) -> None:
    with pytest.raises(CheckpointError, match="names no checkpoint: give a directory"):
        pin(source)
    for read in (nl.GPTNeoXConfig, nl.GPTNeoXTokenizerFast, nl.generation.GenerationConfig):
        with pytest.raises(CheckpointError, match="names no checkpoint"):
            read.from_pretrained(source)
    if source is not None:  # None has a meaning of its own there
        with pytest.raises(CheckpointError, match="names no checkpoint"):
            nl.GPTNeoXForCausalLM.from_pretrained(source)


def test_near_miss_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "pythia-70m").mkdir()
    with pytest.raises(CheckpointError, match="Did you mean 'pythia-70m'"):
        find_file(tmp_path / "pythia-7Om", "config.json")


def test_a_file_is_not_a_source(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file: give the directory"):
        find_file(path, "config.json")


def test_impossible_hub_id() -> None:
    with pytest.raises(CheckpointError, match="neither a directory nor a possible hub id"):
        find_file("no spaces please", "config.json")


# --- the cache, without network ---------------------------------------------------------------


def test_cache_laid_out_by_huggingface_hub(tmp_path: Path) -> None:
    snapshot = lay_out_cache(tmp_path)
    options = HubOptions(cache_dir=tmp_path, local_files_only=True)
    path = find_file("lab/model", "config.json", options)
    assert path == snapshot / "config.json"
    assert path is not None and json.loads(path.read_text()) == {"from": "cache"}
    assert pin("lab/model", options).revision == MAIN
    assert find_file("lab/model", "absent.json", options, required=False) is None
    with pytest.raises(CheckpointError, match=r"only in the local cache.*holds: config.json"):
        find_file("lab/model", "absent.json", options)
    assert list_files("lab/model", pin("lab/model", options)) == ["config.json"]


def test_cached_commit_needs_no_pin(tmp_path: Path) -> None:
    lay_out_cache(tmp_path)
    options = HubOptions(cache_dir=tmp_path, revision=MAIN)
    assert pin("lab/model", options) == HubOptions(cache_dir=tmp_path, revision=MAIN, pinned=True)


def test_not_in_cache_and_no_network_is_one_clear_error(tmp_path: Path) -> None:
    options = HubOptions(cache_dir=tmp_path, local_files_only=True, revision="step3000")
    with pytest.raises(CheckpointError) as caught:
        find_file("EleutherAI/pythia-70m", "config.json", options, required=False)
    for part in ("EleutherAI/pythia-70m", "step3000", "local directory", "HF_HUB_OFFLINE", "load("):
        assert part in str(caught.value)


def test_offline_environment_variable(tmp_path: Path, repository: Repository) -> None:
    snapshot = lay_out_cache(tmp_path / "home" / "hub")
    offline = Client("http://127.0.0.1:9", tmp_path / "home", HF_HUB_OFFLINE="1")
    try:
        assert offline.ask("find_file", "lab/model", "config.json") == str(snapshot / "config.json")
        with pytest.raises(CheckpointError, match="network use is switched off"):
            offline.ask("find_file", "lab/other", "config.json")
    finally:
        offline.close()


def test_unreachable_hub_falls_back_to_the_cache(tmp_path: Path) -> None:
    snapshot = lay_out_cache(tmp_path / "home" / "hub")
    cut_off = Client("http://127.0.0.1:9", tmp_path / "home")
    try:
        assert cut_off.ask("find_file", "lab/model", "config.json") == str(snapshot / "config.json")
        with pytest.raises(CheckpointError, match=r"the hub cannot be reached.*Connect"):
            cut_off.ask("find_file", "lab/other", "config.json")
        with pytest.raises(CheckpointError, match="the hub cannot be reached"):
            cut_off.ask("pin", "lab/model", revision=OTHER)
    finally:
        cut_off.close()


# --- the hub ------------------------------------------------------------------------------------


def test_download_then_offline(client: Client, repository: Repository, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path)}
    path = client.ask("find_file", "lab/model", "weights.bin", **options)
    assert Path(path).read_bytes() == repository.commits[MAIN]["weights.bin"]
    again = HubOptions(cache_dir=tmp_path, local_files_only=True)
    assert find_file("lab/model", "weights.bin", again) == Path(path)


def test_tag_is_resolved_once_for_all_files(
    client: Client, repository: Repository, server: SmallHub, tmp_path: Path
) -> None:
    options = client.ask("pin", "lab/model", cache_dir=str(tmp_path), revision="step3000")
    assert options["revision"] == STEP and options["pinned"]
    repository.refs["step3000"] = MAIN  # the tag moves in the middle of the load
    path = client.ask("find_file", "lab/model", "config.json", **options)
    assert Path(path).read_bytes() == b'{"step": 3000}'
    assert client.ask("find_file", "lab/model", "only-at-step.txt", **options)
    assert [line for line in server.requests if "/api/" in line] == [
        "GET /api/models/lab/model/revision/step3000"
    ]
    assert (tmp_path / "models--lab--model" / "refs" / "step3000").read_text() == STEP


def test_moved_branch_is_fetched_anew(
    client: Client, repository: Repository, tmp_path: Path
) -> None:
    options = {"cache_dir": str(tmp_path)}
    client.ask("find_file", "lab/model", "config.json", **options)
    repository.refs["main"] = STEP
    path = client.ask("find_file", "lab/model", "config.json", **options)
    assert Path(path).read_bytes() == b'{"step": 3000}'


def test_subfolder(client: Client, repository: Repository, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path), "subfolder": "sub"}
    path = client.ask("find_file", "lab/model", "config.json", **options)
    assert Path(path).read_bytes() == b'{"sub": 1}'
    assert client.ask("list_files", "lab/model", **options) == ["config.json"]


def test_force_download(
    client: Client, repository: Repository, server: SmallHub, tmp_path: Path
) -> None:
    options = {"cache_dir": str(tmp_path), "revision": MAIN}
    for force in (False, False, True):
        client.ask("find_file", "lab/model", "config.json", **options, force_download=force)
    fetched = [line for line in server.requests if line.startswith("GET /lab/model/resolve")]
    assert len(fetched) == 2


def test_absent_file_is_asked_for_once(
    client: Client, repository: Repository, server: SmallHub, tmp_path: Path
) -> None:
    options = client.ask("pin", "lab/model", cache_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no file 'absent'.*hub model 'lab/model'.*weights"):
        client.ask("find_file", "lab/model", "absent", **options)
    asked = len([line for line in server.requests if line.startswith("HEAD")])
    with pytest.raises(CheckpointError):
        client.ask("find_file", "lab/model", "absent", **options)
    assert len([line for line in server.requests if line.startswith("HEAD")]) == asked == 1


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("lab/nothing", "main", "shows no model 'lab/nothing'.*pass token="),
        ("lab/model", "step9", "no revision .* 'step9'"),
        ("lab/model", OTHER, "no revision"),
        ("lab/gated", "main", "is gated"),
        ("lab/private", "main", "pass token="),
    ],
)
def test_refusals_in_plain_words(
    client: Client,
    repository: Repository,
    server: SmallHub,
    tmp_path: Path,
    source: str,
    revision: str,
    message: str,
) -> None:
    server.repositories["lab/gated"] = Repository(gated=True)
    server.repositories["lab/private"] = Repository(token="secret")
    options = {"cache_dir": str(tmp_path), "revision": revision}
    with pytest.raises(CheckpointError, match=message):
        client.ask("find_file", source, "config.json", **options)


def test_token_opens_a_private_model(
    client: Client, repository: Repository, server: SmallHub, tmp_path: Path
) -> None:
    server.repositories["lab/private"] = Repository(token="secret")
    options = {"cache_dir": str(tmp_path), "token": "secret"}
    assert client.ask("find_file", "lab/private", "config.json", **options)


def test_hub_that_is_down_counts_as_out_of_reach(
    client: Client, repository: Repository, server: SmallHub, tmp_path: Path
) -> None:
    options = {"cache_dir": str(tmp_path)}
    path = client.ask("find_file", "lab/model", "config.json", **options)
    server.down = True
    assert client.ask("find_file", "lab/model", "config.json", **options) == path
    with pytest.raises(CheckpointError, match="cannot be reached"):
        client.ask("find_file", "lab/model", "config.json", **options, revision="step3000")


def test_directory_wins_over_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "model").mkdir(parents=True)
    (tmp_path / "lab" / "model" / "config.json").write_text("{}")
    assert find_file("lab/model", "config.json") == Path("lab/model/config.json")
    assert hub.local_directory("lab/model") == Path("lab/model")


# --- answers that no hub gives --------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for what huggingface_hub notes about the folder itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts and path.name != "CACHEDIR.TAG"
    }


@pytest.mark.parametrize(
    "commit", ["../../../../gone", "/gone", "a" * 39, "A" * 40, "a" * 40 + "/..", "..", "C:\\x"]
)
def test_a_commit_that_is_none_makes_no_path(
    client: Client, repository: Repository, tmp_path: Path, commit: str
) -> None:
    cache = tmp_path / "one" / "two" / "cache"
    commit = f"{tmp_path}/gone" if commit == "/gone" else commit
    repository.sha = commit
    for name in ("pin", "find_file"):
        arguments = ["config.json"] if name == "find_file" else []
        with pytest.raises(CheckpointError, match=r"names the commit .*40 hexadecimal digits"):
            client.ask(name, "lab/model", *arguments, cache_dir=str(cache))
    repository.sha = None
    repository.headers = {"X_Repo_Commit": commit}
    with pytest.raises(CheckpointError, match=r"names the commit .*40 hexadecimal digits"):
        client.ask("find_file", "lab/model", "config.json", cache_dir=str(cache))
    assert set(everything(tmp_path)) <= {"one/two/cache/models--lab--model/refs/main"}


@pytest.mark.parametrize("etag", ["../../../../gone", "/gone", "..", "", "a\\b", "x" * 300])
@pytest.mark.parametrize("name", ["config.json", "weights.bin"])
def test_an_etag_that_is_none_makes_no_path(
    client: Client, repository: Repository, tmp_path: Path, etag: str, name: str
) -> None:
    cache = tmp_path / "one" / "two" / "cache"
    etag = f"{tmp_path}/gone" if etag == "/gone" else etag
    repository.headers = {"ETag": f'"{etag}"', "X_Linked_Etag": f'"{etag}"'}
    with pytest.raises(CheckpointError, match="the ETag"):
        client.ask("find_file", "lab/model", name, cache_dir=str(cache))
    assert set(everything(tmp_path)) == {"one/two/cache/models--lab--model/refs/main"}


@pytest.mark.parametrize("upper", [False, True])
def test_other_bytes_of_the_same_number_are_not_kept(
    client: Client, repository: Repository, tmp_path: Path, upper: bool
) -> None:
    data = repository.commits[MAIN]["weights.bin"]
    repository.damaged = {"weights.bin"}
    if upper:
        repository.headers = {"X_Linked_Etag": hashlib.sha256(data).hexdigest().upper()}
    options = {"cache_dir": str(tmp_path)}
    with pytest.raises(CheckpointError, match=r"'weights\.bin' came with other bytes"):
        client.ask("find_file", "lab/model", "weights.bin", **options)
    assert data[::-1] not in everything(tmp_path).values()
    repository.damaged = set()
    path = client.ask("find_file", "lab/model", "weights.bin", **options)
    assert Path(path).read_bytes() == data


def test_a_file_whose_check_was_interrupted_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, path = tmp_path / "blob", tmp_path / "weights.bin"
    blob.write_bytes(b"other")
    path.symlink_to(blob)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check_bytes(path, "a" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a/../../x", "a\\..\\x", "C:x", "x\0", "", "./x", "a//x"]
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text("not to be read")
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(CheckpointError, match="is no name of a file"):
        find_file(inside, name, required=False)
    with pytest.raises(CheckpointError, match="is no name of a file"):
        find_file("lab/model", name, HubOptions(cache_dir=tmp_path, local_files_only=True))
    if name:
        with pytest.raises(CheckpointError, match="is no name of a revision"):
            pin("lab/model", HubOptions(cache_dir=tmp_path, revision=name))
    assert os.listdir(tmp_path / "inside") == []


def test_a_cache_that_names_no_commit_is_not_followed(tmp_path: Path) -> None:
    lay_out_cache(tmp_path)
    (tmp_path / "models--lab--model" / "refs" / "main").write_text("../../..")
    with pytest.raises(CheckpointError, match="names the commit"):
        pin("lab/model", HubOptions(cache_dir=tmp_path, local_files_only=True))
