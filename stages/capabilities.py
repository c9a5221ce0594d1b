"""What each stage claims to be able to do; the contract tests hold them to it."""

from typing import NamedTuple

MINIRAY = 6  # miniray comes after stage 5, and keeps every promise that a stage makes


class Capability(NamedTuple):
    """One promise: its key in the contract tests, its words, and the first stage that makes it."""

    key: str
    words: str
    since: int
    proof: str = "tests/contracts"  # where it is tested, if not as a contract


CAPABILITIES = (
    Capability("messages", "messages to a forked worker and back, of any size, in order", 1),
    Capability("endings", "every ending is told: returned, raised (with traceback), killed", 1),
    Capability("nothing-left", "`close()` leaves no process, no zombie and no descriptor", 1),
    Capability("siblings", "a hang-up is seen, however many siblings were forked", 1),
    Capability("tcp", "the same worker over TCP", 2),
    Capability("timeouts", "a late `recv` resumes where it was; a late `send` ends the channel", 2),
    Capability("wait", "`wait()` over more than a thousand channels, and no hidden buffer", 2),
    Capability("hostile-bytes", "hostile bytes raise `ProtocolError` and nothing else", 2),
    Capability("forking", "a process for each client; one that dies takes nobody along", 3),
    Capability("post-mortem", "how a remote worker died is known: signal or exit status", 3),
    Capability("handshake", "without the key: no worker, no fork, and no harm to others", 3),
    Capability("cluster", "ranks over several nodes: all start or none, every fault told", 4),
    Capability("logs", "output comes with the names of node and rank", 4),
    Capability("lease", "nothing is left on a node when the coordinator is killed", 4),
    Capability("shells", "any login shell; start-up files may print", 4),
    Capability("tensors", "tensors of every dtype, as raw bytes, into memory of their own", 5),
    Capability("fsdp", "process groups, and FSDP equal to one process, on fake GPUs", 5),
    Capability(
        "duplex",
        "both sides may send a message of any size at once",
        MINIRAY,
        "tests/test_every_worker.py::test_both_sides_may_send_64_mib_at_once",
    ),
    Capability(
        "last-words",
        "what was sent before an ending arrives before the error",
        MINIRAY,
        "tests/test_every_worker.py::test_what_was_sent_before_the_end_is_received_before_the_error",
    ),
    Capability(
        "slow-strangers",
        "a stranger who says nothing delays nobody",
        MINIRAY,
        "tests/test_worker_server.py::TestStrangers::test_slow_ones_take_nobodys_place",
    ),
    Capability(
        "shared-memory",
        "`SharedTensor`: a tensor that another process sees, without a copy",
        MINIRAY,
        "tests/test_shared_tensor.py::test_both_sides_see_each_others_writes",
    ),
    Capability(
        "nothing-installed",
        "nodes need nothing but Python: the code comes over ssh",
        MINIRAY,
        "tests/test_sources.py::TestWhatIsSent::test_a_package_beside_a_lone_module",
    ),
    Capability(
        "tunnel",
        "connections through ssh, with no port open on the node",
        MINIRAY,
        "tests/test_cluster.py::test_a_tunnel_opens_no_port",
    ),
    Capability(
        "keeper",
        "a killed server leaves no grandchild, whatever group it joined",
        MINIRAY,
        "tests/test_faults.py::test_workers_and_grandchildren_die_with_their_server",
    ),
    Capability(
        "lost-link",
        "a cut link ends both sides, servers included",
        MINIRAY,
        "tests/test_faults.py::test_a_cut_link_ends_both_sides",
    ),
    Capability(
        "log-flood",
        "logs that nobody reads, or a full disk, do not stop the work",
        MINIRAY,
        "tests/test_worker_server.py::TestOutput"
        "::test_work_goes_on_without_a_reader_and_what_is_dropped_is_counted",
    ),
    Capability(
        "culprit",
        "when a rank dies in a collective, the first culprit is named",
        MINIRAY,
        "tests/test_faults.py"
        "::test_the_first_culprit_is_named_when_a_rank_dies_inside_a_collective",
    ),
    Capability(
        "fake-memory",
        "a fake GPU can be full",
        MINIRAY,
        "tests/test_nccl.py::test_a_model_too_big_for_one_fake_gpu_trains_on_eight",
    ),
)


def make_table() -> str:
    """Return the table of who has which capability, in Markdown."""
    head = "| capability | 1 | 2 | 3 | 4 | 5 | miniray |\n|---|:-:|:-:|:-:|:-:|:-:|:-:|"
    rows = []
    for one in CAPABILITIES:
        marks = " | ".join("yes" if one.since <= stage else "" for stage in range(1, MINIRAY + 1))
        rows.append(f"| {one.words} | {marks} |")
    return "\n".join([head, *rows])
