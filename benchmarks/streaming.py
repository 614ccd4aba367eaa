"""Models larger than memory: in memory, mapped, and streamed from their files layer by layer.

Run: python benchmarks/streaming.py [--shape NAME] [--folder DIR] [--tokens N] [--sweep]
     [--device cuda]

Random bfloat16 weights of a shape are written shard by shard into a temporary directory (after a
look at the free disk) and deleted at the end. Each way of holding the model runs in a process of
its own; before every pass the system is told to forget the files, so that passes read the disk:

    peak    memory of the process that is no page of a file, at its highest, above what it was
            after the imports (VmHWM, which counts pages of mapped files, in brackets)
    pass    seconds of a forward pass; what a process has mapped the system does not forget, so
            of a shape that fits into memory ``mapped`` reads memory, not the disk
    read    bytes that the pass reads from the files, and its rate as a share of the disk's: of
            reading the same files in large pieces and doing nothing with them
    sweep   seconds of a ``resid_pre`` sweep over all layers and positions

On a GPU ``resident`` is there whole, nothing is mapped, ``streamed`` layers come through pinned
memory, and peak is the GPU's. ``--shape 20b`` is GPT-NeoX-20B: 41 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header, is_gpu, seconds

SHAPES = {  # layers, d_model, heads
    "small": (8, 1024, 16),
    "410m": (24, 1024, 16),
    "1.4b": (24, 2048, 16),
    "6.9b": (32, 4096, 32),
    "20b": (44, 6144, 64),
}
VOCAB = 50432
WAYS = ("resident", "mapped", "streamed")
KEPT = 3  # layers that the streamed model may have in memory, two of them on their way


def write(folder: Path, shape: str) -> None:
    """Write random weights, one shard a layer."""
    import torch

    import neox_lab as nl
    from neox_lab import safetensors_files
    from neox_lab.checkpoint.loading import skeleton

    layers, d_model, heads = SHAPES[shape]
    config = nl.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * d_model,
    )
    config.dtype = torch.bfloat16
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in skeleton(nl.GPTNeoXForCausalLM, config).named_parameters():
        layer = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "others"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = parameter.shape
    needed = 2 * sum(size.numel() for named in shards.values() for size in named.values())
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        sys.exit(f"{shape} takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of disk are free.")
    index = {}
    for file, named in shards.items():
        tensors = {}
        for name, size in named.items():
            scale = 1.0 if name.endswith("norm.weight") else 0.02
            tensors[name] = (torch.randn(size, dtype=torch.bfloat16) * 0.02).add_(scale == 1.0)
            index[name] = file
        safetensors_files.write(folder / file, tensors, {"format": "pt"})
        os.sync()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def forget(folder: Path) -> None:
    """Ask the system to drop the files' pages from memory."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path) -> float:
    """Bytes a second of reading the files in large pieces."""
    forget(folder)
    piece, count = bytearray(64 * 2**20), 0
    start = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while got := file.readinto(piece):
                count += got
    return count / (time.perf_counter() - start)


def status(*names: str) -> int:
    """Kilobytes that /proc says of this process, summed over ``names``."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in names)


def measure(folder: Path, way: str, options: argparse.Namespace) -> dict[str, float]:
    """One way of holding the model, in this process."""
    import torch

    import neox_lab as nl
    from neox_lab.streaming import store_of
    from neox_lab.streaming.placement import sizes_of

    device = options.device
    before, peak, stopped = status("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            peak[0] = max(peak[0], status("RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    torch.zeros(1, device=device)  # a GPU is started
    on_gpu = Peak(device) if is_gpu(device) else None
    load = nl.GPTNeoXForCausalLM.from_pretrained
    model = load(folder)
    if way == "resident":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(device, copy=True)
    if way == "streamed":
        named = dict(model.named_parameters())
        sizes = sizes_of(named, model.config.num_hidden_layers, model.dtype, {})
        del named, model
        where = torch.device(device).index or 0 if is_gpu(device) else "cpu"
        model = load(folder, max_memory={where: sizes.fixed + KEPT * sizes.layers[0]})
    ids = torch.randint(VOCAB, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    with torch.no_grad():
        model(ids[:, :2])
        forget(folder)
        store = store_of(model)
        read = 0 if store is None else store.read.nbytes
        taken = seconds(lambda: model(ids), device)
        read = 0 if store is None else store.read.nbytes - read
        found = {"pass": taken, "read": read}
        if options.sweep:
            other, metric = ids.clone(), nl.patching.logit_difference(3, 4)
            other[0, 1] = 5
            found["sweep"] = seconds(lambda: nl.patching.sweep(model, ids, other, metric), device)
    stopped.set()
    found["peak"] = 1024 * (max(peak[0], status("RssAnon")) - before)
    if on_gpu is not None:
        found["peak"] = on_gpu.nbytes()
    found["high"] = 1024 * status("VmHWM")
    return found


def main() -> None:
    """Write, measure each way in a process of its own, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--folder", type=Path, help="where to write the weights, for a while")
    parser.add_argument("--tokens", type=int, default=14)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    add_device(parser)
    options = parser.parse_args()
    if options.measure:
        folder, way = options.measure
        print(json.dumps(measure(Path(folder), way, options)))
        return
    print(header(options.device))
    every = [way for way in WAYS if way != "mapped" or not is_gpu(options.device)]
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        write(folder, options.shape)
        rate = disk_rate(folder)
        whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(f"{options.shape}: {whole / 1e9:.2f} GB, disk {rate / 1e9:.2f} GB a second")
        for way in options.ways or every:
            command = [sys.executable, __file__, "--measure", made, way]
            command += ["--tokens", str(options.tokens), "--device", options.device]
            command += ["--sweep"] if options.sweep else []
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(ran.stdout.splitlines()[-1])
            line = f"{way:>9}  peak {found['peak'] / 1e9:6.2f} GB ({found['high'] / 1e9:.2f})"
            line += f"  pass {found['pass']:7.2f} s"
            if found["read"]:
                share = found["read"] / found["pass"] / rate
                line += f"  read {found['read'] / 1e9:.2f} GB, {share:.0%} of the disk's rate"
            if options.sweep:
                line += f"  sweep {found['sweep']:.2f} s"
            print(line)


if __name__ == "__main__":
    main()
