"""The announcement's snippets, as they stand there, with only the package's path changed."""

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import namespaces

SERVER = """
python -m miniray.worker_server \\
    --port 10000 \\
    --work-fn my_module.work_fn
"""
CLIENT = """
from miniray import RemoteWorker
worker = RemoteWorker("localhost", 10000)
worker.send({"cmd": "hello"})
print(worker.recv())
"""
CLUSTER = """
from miniray import Cluster, NodeConfig

# Define cluster
cluster = Cluster(nodes=[
    NodeConfig("node1.local", num_workers=4),
    NodeConfig("node2.local", num_workers=4),
])

# Launch workers (SSH + TCP)
workers = cluster.start(work_fn="module.train_fn")

# Use them (same API as local Worker!)
for worker in workers:
    worker.send({"cmd": "train", "batch": batch})

results = [w.recv() for w in workers]
cluster.stop()
"""
FSDP = """
# 2 nodes, 8 GPUs, FSDP across nodes
cluster = Cluster(nodes=[
    NodeConfig("192.168.1.10", num_workers=4),
    NodeConfig("192.168.1.11", num_workers=4),
])

workers = cluster.start(work_fn="module.training_work_fn")

# Send NCCL configs
from miniray import create_nccl_configs
configs = create_nccl_configs(
    master_addr="192.168.1.10",
    nodes=[("node1", 4), ("node2", 4)],
)

for worker, config in zip(workers, configs):
    worker.send(config.__dict__)

# Training loop (FSDP syncs across nodes!)
for batch in batches:
    for worker in workers:
        worker.send({"cmd": "forward_backward", "batch": batch})

    metrics = [worker.recv() for worker in workers]
    print(f"loss={sum(m['loss'] for m in metrics) / len(metrics):.4f}")
"""
MODULE = """
import os

def train_fn(channel):
    for message in channel:
        channel.send([message["cmd"], sum(message["batch"])])

def training_work_fn(channel):
    import torch
    from torch.distributed.fsdp import fully_shard
    from miniray import process_group
    with process_group(channel.recv()) as device:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8).to(device)
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for message in channel:
            optimizer.zero_grad()
            loss = model(torch.tensor(message["batch"])).square().mean()
            loss.backward()
            optimizer.step()
            channel.send({"loss": loss.item()})
"""


def test_single_node(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(
        "def work_fn(channel):\n    for message in channel:\n        channel.send(message)\n"
    )
    root = Path(__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment |= {"MINIRAY_KEY_FILE": str(tmp_path / "key")}
    # Port 10000 may be taken on a shared machine: the server takes a free one and says which.
    server = subprocess.Popen(
        ["/bin/sh", "-c", "exec " + SERVER.replace("10000", "0").strip()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert found is not None, line + server.stdout.read()
    client = subprocess.run(
        [sys.executable, "-c", CLIENT.replace("10000", found[1])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert client.stdout == "{'cmd': 'hello'}\n", client.stderr
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=30)
    assert server.returncode in (0, 130)


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.slow
def test_cluster_and_fsdp(netns_nodes: namespaces.Nodes, tmp_path: Path) -> None:
    """Names and addresses as announced, by way of what a user has too: an ssh config."""
    (tmp_path / "module.py").write_text(MODULE)
    names = {"node1": "node1.local 192.168.1.10", "node2": "node2.local 192.168.1.11"}
    aliases = "".join(
        f"Host {alias}\n  HostName {netns_nodes.addresses[host]}\n  HostKeyAlias {host}\n"
        for host, alias in names.items()
    )
    config = netns_nodes.ssh_options[1]
    (tmp_path / "config").write_text(aliases + Path(config).read_text())
    # ssh finds its config by -F alone, python is the tests' own, and the GPUs are fake.
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {tmp_path}/config "$@"\n')
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for file in (ssh, python):
        file.chmod(0o755)
    setup = f"""
        import os, sys
        os.environ["PATH"] = {str(tmp_path)!r} + ":" + os.environ["PATH"]
        sys.path.insert(0, {str(tmp_path)!r})
        from miniray import cluster as module
        original = module.NodeConfig.__init__
        def with_tests_python(self, *args, **kwargs):
            kwargs.setdefault("python", {str(python)!r})
            kwargs.setdefault("env", {{"MINIRAY_FAKE_GPUS": "1"}})
            original(self, *args, **kwargs)
        module.NodeConfig.__init__ = with_tests_python
        batch = [1, 2, 3]
        batches = [[[float(row)] * 8] * 2 for row in range(4)]
    """
    addresses = netns_nodes.addresses
    fsdp = FSDP.replace('master_addr="192.168.1.10"', f'master_addr="{addresses["node1"]}"')
    script = textwrap.dedent(setup) + CLUSTER + "print(results)\n" + fsdp + "cluster.stop()\n"
    ended = netns_nodes.python(script, timeout=100)
    assert ended.returncode == 0, ended.stderr
    results, *losses = ended.stdout.splitlines()
    assert results == str([["train", 6]] * 8)
    assert len(losses) == 4
    assert all(re.fullmatch(r"loss=\d+\.\d{4}", loss) for loss in losses)
    netns_nodes.wait_until_empty(timeout_s=15)
