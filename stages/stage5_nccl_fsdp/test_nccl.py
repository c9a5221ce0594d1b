"""What ranks, process groups and training promise, from stage 5 on."""

import io
import os
import socket
import unittest

from .channel import Channel
from .cluster import Cluster
from .nccl import create_nccl_configs, process_group
from .test_cluster import make_nodes
from .worker import Worker

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

T = 60.0
STEPS = 3


def tell_place(channel: Channel) -> None:
    """Join the group that the message describes, and tell where in it this process is."""
    with process_group(channel.recv()) as device:
        ones = torch.ones(1, device=device)
        torch.distributed.all_reduce(ones)
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        channel.send([ones.item(), device.type, *(int(os.environ[name]) for name in names)])


class TestConfigs(unittest.TestCase):
    def test_ranks_count_through_the_nodes(self) -> None:
        configs = create_nccl_configs("10.0.0.1", [("a", 2), ("b", 1), ("c", 3)], 1234)
        places = [(one.rank, one.node_rank, one.local_rank) for one in configs]
        assert places == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 2, 0), (4, 2, 1), (5, 2, 2)]
        assert [one.local_world_size for one in configs] == [2, 2, 1, 3, 3, 3]
        assert {one.world_size for one in configs} == {6}

    def test_a_config_says_what_torchrun_would(self) -> None:
        config = create_nccl_configs("10.0.0.1", [("a", 2), ("b", 2)], 1234)[3]
        assert config.environment() == {
            "RANK": "3",
            "WORLD_SIZE": "4",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "1",
            "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "1234",
        }

    @unittest.skipIf(torch is None, "torch is not installed")
    def test_a_missing_gpu_is_an_error_that_names_the_remedy(self) -> None:
        if torch.cuda.is_available():
            self.skipTest("there is a GPU here")
        (config,) = create_nccl_configs("127.0.0.1", [("a", 1)])
        with self.assertRaisesRegex(RuntimeError, r"no GPU.*fake_gpus=True"), process_group(config):
            pass


@unittest.skipIf(torch is None, "torch is not installed")
class TestGroups(unittest.TestCase):
    def test_two_ranks_meet_and_know_their_places(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        configs = create_nccl_configs("127.0.0.1", [("a", 1), ("b", 1)], port, backend="gloo")
        with Worker(tell_place) as one, Worker(tell_place) as other:
            for worker, config in zip((one, other), configs, strict=True):
                worker.send(config.__dict__)
            assert one.recv(T) == [2, "cpu", 0, 0, 2, 1, 0]
            assert other.recv(T) == [2, "cpu", 1, 0, 2, 1, 1]

    def test_fsdp_over_two_nodes_equals_one_process(self) -> None:
        text = torch.frombuffer(bytearray(str(unittest.__doc__).encode()), dtype=torch.uint8)
        order = {"world_size": 8, "steps": STEPS, "text": text}
        with Cluster(make_nodes(each=4), fake_gpus=True, log=io.StringIO()) as cluster:
            workers = cluster.start(f"{__package__}.train.work")
            for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
                worker.send({"config": config.__dict__, **order})
            steps = [[worker.recv(T) for worker in workers] for _ in range(STEPS)]
            parameters = [worker.recv(T)["parameters"] for worker in workers]
            workers[0].send({"config": None, **order})
            losses = [workers[0].recv(T)["loss"] for _ in range(STEPS)]
            whole = workers[0].recv(T)["parameters"]
        for step, loss in zip(steps, losses, strict=True):
            assert len({answer["loss"] for answer in step}) == 1
            assert abs(step[0]["loss"] - loss) < 1e-5
        assert losses[-1] < losses[0]
        assert parameters[1:] == [None] * 7
        for name, value in whole.items():
            assert torch.allclose(parameters[0][name], value, atol=1e-5), name
        # 4 bytes each for a parameter, its gradient and AdamW's two averages: an eighth a rank.
        share = 16 * sum(value.numel() for value in whole.values()) / 8
        for answer in steps[-1]:
            assert share * 0.8 < sum(answer["memory"].values()) < share * 1.2


if __name__ == "__main__":
    unittest.main()
