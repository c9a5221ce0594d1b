"""The environment that ranks meet by."""

import os

import pytest

from miniray import create_nccl_configs
from miniray.rendezvous import environment


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
