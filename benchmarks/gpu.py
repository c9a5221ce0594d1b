"""Check on a real GPU what the fake ones claim: python -m benchmarks.gpu.

NCCL over all GPUs that are visible, FSDP2's losses and memory beside those of a fake GPU, in
float32 and in bfloat16, and what sending a GPU's tensors takes with pinned memory and without.
"""

import contextlib
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.start import free_port
from miniray import Channel, NCCLConfig, Worker, create_nccl_configs, fake_gpu, process_group
from miniray.extras.pinned import PinnedMemory
from miniray.nccl import choose_device

STEPS = 20
# By dtype. One device multiplies in another order than the other; each step adds to the difference.
LOSS_DIFFERENCE_MAX = {"float32": 1e-4, "bfloat16": 5e-2}
ELEMENTS = (1, 1024, 1024 * 1024, 64 * 1024 * 1024)
SENT_MIB = (1, 64, 512)


def main() -> int:
    """Print what was measured; return 0, or 1 if the losses differ."""
    facts = ask(describe_gpu)[0]
    gpus = facts["gpus"]
    if not gpus:
        print(f"no GPU benchmark: torch {facts['torch']} sees no CUDA device on this machine")
        return 0
    print(f"{gpus} x {facts['name']}, torch {facts['torch']}, NCCL {facts['nccl']}\n")
    for ranks in sorted({1, gpus}):
        print(f"NCCL all_reduce, {ranks} of {gpus} GPUs")
        for elements, microseconds in ask(time_all_reduce, ranks)[0].items():
            print(f"  {int(elements):>10} float32  {microseconds:10.1f} us")
    are_same = [compare_training(dtype) for dtype in LOSS_DIFFERENCE_MAX]
    print("\nfrom a GPU to a local worker, GiB/s   .cpu()   pinned")
    for mebibytes, speeds in ask(time_sends)[0].items():
        print(f"  {mebibytes:>4} MiB {speeds['cpu']:33.2f} {speeds['pinned']:8.2f}")
    return 0 if all(are_same) else 1


def compare_training(dtype: str) -> bool:
    """Print what training is on a GPU and on a fake one; return whether the losses agree."""
    real, fake = (ask(train, fake=fake, dtype=dtype)[0] for fake in (False, True))
    difference = max(
        abs(a - b) / abs(b) for a, b in zip(real["losses"], fake["losses"], strict=True)
    )
    print(f"\nFSDP2 in {dtype}, {STEPS} steps, {real['losses'][0]:.6f} -> {real['losses'][-1]:.6f}")
    for name, one in (("on CUDA with NCCL", real), ("on a fake GPU with gloo", fake)):
        print(
            f"  {name:24} {one['step_ms']:8.2f} ms a step, {one['held_mib']:.2f} MiB after it, "
            f"{one['most_mib']:.2f} at most"
        )
    is_same = difference <= LOSS_DIFFERENCE_MAX[dtype]
    print(f"  losses differ by {difference:.1e} at most: {'ok' if is_same else 'TOO MUCH'}")
    return is_same


def ask(work: Any, ranks: int = 1, **message: Any) -> list[Any]:
    """Run one function in workers, a rank each: CUDA must not start in a process that forks."""
    configs = create_nccl_configs("127.0.0.1", [("local", ranks)], free_port())
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(lambda channel: answer(channel, work))) for _ in configs
        ]
        for worker, config in zip(workers, configs, strict=True):
            worker.send({"config": config.__dict__, **message})
        return [worker.recv(timeout=300.0) for worker in workers]


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
                tensor.fill_(1)
                torch.cuda.synchronize()
                start = time.perf_counter()
                dist.all_reduce(tensor)
                torch.cuda.synchronize()
                samples.append((time.perf_counter() - start) * 1e6)
            medians[str(elements)] = statistics.median(samples[5:])
            assert tensor[0].item() == config["world_size"]
    return medians


def time_sends(config: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the GiB/s of a GPU's tensor to a worker and an answer, by MiB and by way."""
    speeds: dict[str, dict[str, float]] = {}
    # The receiver is forked before CUDA starts here.
    with Worker(receive_all) as receiver:
        import torch

        memory, device = PinnedMemory(), choose_device(NCCLConfig(**config))
        ways: dict[str, Any] = {"cpu": lambda tensor: tensor.cpu(), "pinned": memory.copy}
        for mebibytes in SENT_MIB:
            tensor = torch.ones(mebibytes * 2**18, device=device)
            speeds[str(mebibytes)] = {}
            for name, bring in ways.items():
                samples = []
                for _ in range(7):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    receiver.send(bring(tensor))
                    assert receiver.recv(timeout=60) == 1.0
                    samples.append(time.perf_counter() - start)
                speeds[str(mebibytes)][name] = mebibytes / 1024 / statistics.median(samples[2:])
    return speeds


def receive_all(channel: Channel) -> None:
    """Answer each tensor with its last element."""
    for tensor in channel:
        channel.send(tensor[-1].item())


def train(config: dict[str, Any], fake: bool, dtype: str) -> dict[str, Any]:
    """Train a small model as the only rank; return its losses, a step's median time and memory."""
    os.environ |= {"MINIRAY_FAKE_GPUS": "1" if fake else "0", "MINIRAY_FAKE_GPU_MEMORY": "1GiB"}
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    with process_group(config) as device:
        torch.manual_seed(0)  # parameters and data are made on the CPU, the same for both
        layers = [torch.nn.Linear(256, 256) for _ in range(4)]
        model = torch.nn.Sequential(*layers, torch.nn.GELU(), torch.nn.Linear(256, 64)).to(device)
        inputs = torch.randn(128, 256).to(device)
        labels = torch.randint(64, (128,)).to(device)
        memory: Any = fake_gpu if fake else torch.cuda
        mesh, computed = init_device_mesh(device.type, (1,)), getattr(torch, dtype)
        policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
        for module in (*layers, model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses, samples = [], []
        for _ in range(STEPS):
            start = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(model(inputs).float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch lacks it
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())  # waits for the device
            samples.append((time.perf_counter() - start) * 1e3)
        del loss
        return {
            "losses": losses,
            "step_ms": statistics.median(samples),
            "held_mib": memory.memory_allocated() / 2**20,
            "most_mib": memory.max_memory_allocated() / 2**20,
        }


if __name__ == "__main__":
    sys.exit(main())
