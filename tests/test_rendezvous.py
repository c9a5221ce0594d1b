"""The environment that ranks meet by, and the socket at which they do."""

import importlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray import Channel, Cluster, NodeConfig, WorkerDied, create_nccl_configs, wait
from miniray.rendezvous import environment
from miniray.torch_store import RENDEZVOUS, OnImport, StoreHost
from tests import work
from tests.support import namespaces, ports
from tests.support.servers import serving

T = 60.0
HERE = "127.77.0.1"  # is this machine, too, and nobody else is about to take a port of it
NOT_OURS = "192.0.2.1"  # for documentation: nobody has it
torch_is_here = pytest.mark.skipif(
    not any((Path(path) / "torch").is_dir() for path in sys.path), reason="needs torch"
)


def test_a_group_gives_back_only_what_it_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "before")
    monkeypatch.setenv("DELETED_INSIDE", "before")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SET_INSIDE", "before")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (config,) = create_nccl_configs("127.0.0.1", nodes=[("node1", 1)])
    with environment(config):
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
        os.environ["SET_INSIDE"] = "inside"
        del os.environ["DELETED_INSIDE"]
        os.environ["MASTER_PORT"] = "changed by the user"
        del os.environ["MASTER_ADDR"]
    assert os.environ["RANK"] == "before"
    assert os.environ["SET_INSIDE"] == "inside"
    assert os.environ.pop("MASTER_PORT") == "changed by the user"
    assert {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "DELETED_INSIDE"}.isdisjoint(os.environ)


def test_both_backends_take_the_interface_towards_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    (config,) = create_nccl_configs("127.0.0.1", nodes=[("node1", 1)])
    with environment(config):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo"
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    with environment(config):
        assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


class TestSocket:
    @pytest.mark.parametrize(
        ("hosts", "address"),
        [
            ([HERE], HERE),
            ([NOT_OURS, HERE], HERE),
            (["0.0.0.0", HERE], "0.0.0.0"),
            (["127.0.0.1", HERE], HERE),  # where a name of one's own may lead
        ],
    )
    def test_is_at_the_first_address_that_others_may_reach(
        self, hosts: list[str], address: str
    ) -> None:
        with StoreHost(hosts) as host:
            assert host.address[0] == address
            assert not ports.is_free(*host.address)

    def test_that_cannot_be_is_said(self) -> None:
        with (
            serving(work.obey) as server,
            pytest.raises(ConnectionRefusedError, match=f"at {NOT_OURS}: .*; give an address of"),
        ):
            server.worker(rendezvous=[NOT_OURS])

    @pytest.mark.parametrize("name", ["a..b", "x" * 64, "nul\0"])
    def test_that_has_no_name_is_said_and_the_server_goes_on(self, name: str) -> None:
        with serving(work.echo) as server, server.worker() as bystander:
            with pytest.raises(ConnectionRefusedError, match="the ranks cannot meet at "):
                server.worker(rendezvous=[name])
            bystander.send("alive")
            assert bystander.recv(T) == "alive"

    def test_is_taken_once_it_is_named_and_until_its_rank_ends(self) -> None:
        with (
            serving(work.obey) as server,
            server.worker(rendezvous=[HERE]) as rank_0,
            server.worker() as rank_1,
        ):
            assert rank_1.rendezvous == []
            assert not ports.is_free(*rank_0.rendezvous)
            rank_0.send("die")
            with pytest.raises(WorkerDied):
                rank_0.recv(T)
            assert ports.is_free(*rank_0.rendezvous)

    def test_is_not_kept_by_a_descendant(self) -> None:
        def leave_a_child(channel: Channel) -> None:
            has_left, leaves = os.pipe()
            if (pid := os.fork()) == 0:
                os.setsid()  # until then it would end with the worker's group
                os.write(leaves, b"!")
                signal.pause()
            os.read(has_left, 1)
            channel.send(pid)

        with serving(leave_a_child) as server, server.worker(rendezvous=[HERE]) as rank_0:
            child = rank_0.recv(T)
            try:
                assert rank_0.wait(T) == 0
                assert ports.is_free(*rank_0.rendezvous)
            finally:
                os.kill(child, signal.SIGKILL)


@pytest.fixture
def late_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a module that has not been imported yet."""
    (tmp_path / "imported_late.py").write_text("import sys\nTCPStore = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "imported_late"
    sys.modules.pop("imported_late", None)


def test_an_import_is_noticed_once_and_at_its_end(late_module: str) -> None:
    before, seen = list(sys.meta_path), []

    def act(module: types.ModuleType) -> None:
        seen.append(module.TCPStore)
        module.TCPStore += 1

    sys.meta_path.insert(0, OnImport(late_module, act))
    assert importlib.import_module(late_module).TCPStore == 8
    assert seen == [7]
    assert sys.meta_path == before


def test_an_import_that_finds_nothing_fails_as_ever() -> None:
    before = list(sys.meta_path)
    sys.meta_path.insert(0, OnImport("imported_never", lambda module: None))
    with pytest.raises(ModuleNotFoundError, match="imported_never"):
        importlib.import_module("imported_never")
    assert sys.meta_path == before


@torch_is_here
@pytest.mark.parametrize(
    ("version", "use_libuv"),
    [("2.6.0", False), ("2.7.1+cpu", False), ("2.8.0", True), ("2.13", True)],
)
def test_who_comes_early_waits_for_the_store_that_takes_a_socket(
    monkeypatch: pytest.MonkeyPatch, version: str, use_libuv: bool
) -> None:
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    made: list[dict[str, Any]] = []

    def make_store(*address: Any, **options: Any) -> Any:
        made.append(options)
        return types.SimpleNamespace(
            add=lambda key, number: number, compare_set=lambda key, before, after: after.encode()
        )

    module = types.ModuleType("a module like torch's")
    vars(module)["TCPStore"] = make_store
    monkeypatch.setitem(sys.modules, RENDEZVOUS, module)
    with StoreHost(["127.0.0.1"]) as host:
        assert ports.listening(host.address[1]) == []
        host.take_over()
        assert ports.listening(host.address[1]) == ["127.0.0.1"]
        for _ in range(2):
            module.TCPStore(is_master=True)
    assert [one.get("use_libuv") for one in made] == [use_libuv, None, None]


@torch_is_here
@pytest.mark.slow
class TestGroups:
    def test_meet_at_a_port_that_was_never_free(self) -> None:
        nodes = [NodeConfig.local(2, address=HERE), NodeConfig.local(2)]
        with Cluster(nodes, fake_gpus=True, start_timeout=T) as cluster:
            workers = cluster.start("tests.torch_work.all_reduce")
            configs = cluster.nccl_configs()
            address, port = configs[0].master_addr, configs[0].master_port
            assert address == HERE
            assert cluster.nccl_configs() == configs
            for worker, config in zip(workers, configs, strict=True):
                worker.send(config.__dict__)
            while not wait(workers, 0.002):
                assert not ports.is_free(address, port)
            assert cluster.gather(T) == [4.0] * 4
            found = [ports.listening(port, worker.pid) for worker in workers]
            assert found == [[HERE], [], [], []]
            assert ports.is_open(address, port)
            workers[0].send("die")
            with pytest.raises(WorkerDied):
                workers[1].recv(T)
            assert not ports.is_open(address, port)
            again = cluster.restart()
            assert [one.rendezvous == [] for one in again] == [False, True, True, True]
            for worker, config in zip(again, cluster.nccl_configs(), strict=True):
                worker.send(config.__dict__)
            assert cluster.gather(T) == [4.0] * 4

    def test_of_the_same_ranks_follow_each_other_in_all_ways(self) -> None:
        # The older store of torch, too: all that it knows of its version is what we say.
        for rounds, version in ((3, ""), (2, "2.7.1")):
            nodes = [NodeConfig.local(2), NodeConfig.local(1)]
            with Cluster(nodes, fake_gpus=True, start_timeout=T) as cluster:
                answers = cluster.run("tests.torch_work.meet", rounds, version, timeout=T)
            total = 3.0 ** (3 * rounds)
            assert answers == [[total, ["127.0.0.1"]], [total, []], [total, []]]


@torch_is_here
@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("asked", "address"),
    [
        ("10.77.0.99", "10.77.0.11"),  # which is nobody's
        ("fd77::11", "fd77::11"),
    ],
)
def test_rank_0_listens_at_one_address_of_its_node(
    netns_nodes: namespaces.Nodes, asked: str, address: str
) -> None:
    script = f"""
import sys
from miniray import *
options = dict(python=sys.executable, ssh_options={netns_nodes.ssh_options!r}, tunnel=True)
nodes = [NodeConfig("node1", 2, address={asked!r}, **options), NodeConfig("node2", 2, **options)]
with Cluster(nodes, fake_gpus=True, start_timeout={T}) as cluster:
    for answer in cluster.run("tests.torch_work.meet", 1, timeout={T}):
        print(answer)
"""
    ended = netns_nodes.python(script, timeout=2 * T)
    rank_0, *others = ended.stdout.splitlines()
    assert rank_0 == f"[64.0, ['{address}']]", ended.stderr
    assert others == ["[64.0, []]"] * 3
    netns_nodes.wait_until_empty()
