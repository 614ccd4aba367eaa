"""``push_to_hub`` with huggingface_hub's own code, against a small hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from small_hub import SmallHub

# A process of its own, because the hub's address is read from its environment.
PROGRAM = """
import torch, neox_lab as nl
from neox_lab.errors import CheckpointError
config = nl.GPTNeoXConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
model = nl.GPTNeoXForCausalLM(config).eval()
ids = torch.arange(6)[None]
"""


def run(server: SmallHub, home: Path, program: str) -> str:
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_pushed_can_be_loaded(server: SmallHub, tmp_path: Path) -> None:
    told = run(
        server,
        tmp_path,
        "info = model.push_to_hub('lab/tiny', token='hf_x', tags=['small'], max_shard_size=2000)\n"
        "again = nl.GPTNeoXForCausalLM.from_pretrained('lab/tiny')\n"
        "assert torch.equal(again(ids).logits, model(ids).logits)\n"
        "assert again.revision == info.oid and model.revision is None\n"
        "print(info.oid)\n",
    )
    repository = server.repositories["lab/tiny"]
    assert told.strip() == repository.refs["main"]
    assert repository.messages == ["Upload model"]
    files = repository.commits[repository.refs["main"]]
    assert json.loads(files["config.json"])["model_type"] == "gpt_neox"
    assert "model.safetensors.index.json" in files and "generation_config.json" in files
    card = files["README.md"].decode()
    assert "library_name: transformers" in card and "- small" in card


def test_a_branch_a_message_and_a_card_that_was_there(server: SmallHub, tmp_path: Path) -> None:
    run(
        server,
        tmp_path,
        "model.push_to_hub('lab/branched', token='hf_x', tags=['one'])\n"
        "model.save_pretrained('%s', push_to_hub=True, repo_id='lab/branched', token='hf_x',\n"
        "    revision='step1', commit_message='Second', tags=['two'])\n" % (tmp_path / "saved"),
    )
    repository = server.repositories["lab/branched"]
    assert repository.messages == ["Upload model", "Second"]
    card = repository.commits[repository.refs["step1"]]["README.md"].decode()
    assert "- one" in card and "- two" in card
    assert repository.refs["step1"] != repository.refs["main"]


def test_a_hub_out_of_reach_is_a_checkpoint_error(server: SmallHub, tmp_path: Path) -> None:
    server.down = True  # the fixture is this module's, and this is its last test
    told = run(
        server,
        tmp_path,
        "try:\n    model.push_to_hub('lab/branched', token='hf_x')\n"
        "except CheckpointError as error:\n    print(error)\n",
    )
    assert "Uploading to 'lab/branched' failed" in told
