"""Check on a real GPU what the fake ones claim: python -m benchmarks.gpu.

NCCL at world size 1, and FSDP2's losses on CUDA beside those on a fake GPU.
"""

import os
import statistics
import sys
import time
from typing import Any

from benchmarks.start import free_port
from miniray import Channel, Worker, create_nccl_configs, process_group

STEPS = 20
# One device multiplies in another order than the other; each step adds to the difference.
LOSS_DIFFERENCE_MAX = 1e-4
ELEMENTS = (1, 1024, 1024 * 1024, 64 * 1024 * 1024)


def main() -> int:
    """Print what was measured; return 0, or 1 if the losses differ."""
    facts = ask(describe_gpu)
    if not facts["gpus"]:
        print(f"no GPU benchmark: torch {facts['torch']} sees no CUDA device on this machine")
        return 0
    print(f"{facts['gpus']} x {facts['name']}, torch {facts['torch']}, NCCL {facts['nccl']}\n")
    print("NCCL all_reduce at world size 1 (what a call costs; nothing travels)")
    for elements, microseconds in ask(time_all_reduce).items():
        print(f"  {int(elements):>10} float32  {microseconds:10.1f} us")
    real, fake = ask(train, fake=False), ask(train, fake=True)
    difference = max(
        abs(a - b) / abs(b) for a, b in zip(real["losses"], fake["losses"], strict=True)
    )
    print(f"\nFSDP2, {STEPS} steps, loss {real['losses'][0]:.6f} -> {real['losses'][-1]:.6f}")
    print(f"  on CUDA with NCCL       {real['step_ms']:8.2f} ms a step")
    print(f"  on a fake GPU with gloo {fake['step_ms']:8.2f} ms a step")
    same = difference <= LOSS_DIFFERENCE_MAX
    print(f"  losses differ by {difference:.1e} at most: {'ok' if same else 'TOO MUCH'}")
    return 0 if same else 1


def ask(work: Any, **message: Any) -> Any:
    """Run one function in a worker of its own: CUDA must not start in a process that forks."""
    config = create_nccl_configs("127.0.0.1", [("local", 1)], free_port())[0]
    with Worker(lambda channel: answer(channel, work)) as worker:
        worker.send({"config": config.__dict__, **message})
        return worker.recv(timeout=300.0)


def answer(channel: Channel, work: Any) -> None:
    """Answer one message with what a function returns for it."""
    channel.send(work(**channel.recv()))


def describe_gpu(config: dict[str, Any]) -> dict[str, Any]:
    """Return what there is."""
    import torch

    gpus = torch.cuda.device_count()
    return {
        "gpus": gpus,
        "torch": str(torch.__version__),
        "name": torch.cuda.get_device_name(0) if gpus else "",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else "",  # type: ignore[no-untyped-call]  # torch lacks it
    }


def time_all_reduce(config: dict[str, Any]) -> dict[str, float]:
    """Return the median microseconds of an all_reduce by number of elements."""
    import torch
    import torch.distributed as dist

    medians = {}
    with process_group(config) as device:
        for elements in ELEMENTS:
            tensor = torch.ones(elements, device=device)
            samples = []
            for _ in range(55):
                torch.cuda.synchronize()
                start = time.perf_counter()
                dist.all_reduce(tensor)
                torch.cuda.synchronize()
                samples.append((time.perf_counter() - start) * 1e6)
            medians[str(elements)] = statistics.median(samples[5:])
            assert tensor[0].item() == 1.0
    return medians


def train(config: dict[str, Any], fake: bool) -> dict[str, Any]:
    """Train a small model as the only rank, and return its losses and a step's median time."""
    os.environ["MINIRAY_FAKE_GPUS"] = "1" if fake else "0"
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with process_group(config) as device:
        torch.manual_seed(0)  # parameters and data are made on the CPU, the same for both
        layers = [torch.nn.Linear(256, 256) for _ in range(4)]
        model = torch.nn.Sequential(*layers, torch.nn.GELU(), torch.nn.Linear(256, 64)).to(device)
        inputs = torch.randn(128, 256).to(device)
        labels = torch.randint(64, (128,)).to(device)
        mesh = init_device_mesh(device.type, (1,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses, samples = [], []
        for _ in range(STEPS):
            start = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch lacks it
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())  # waits for the device
            samples.append((time.perf_counter() - start) * 1e3)
        return {"losses": losses, "step_ms": statistics.median(samples)}


if __name__ == "__main__":
    sys.exit(main())
