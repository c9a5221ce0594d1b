"""Fixtures for every test: a key, ssh servers, namespaces, and a check that nothing is left."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from miniray.looking.clusters import find_clusters
from tests.support import leaks, namespaces, processes, ssh

IN_CI = bool(os.environ.get("MINIRAY_CI"))
NEVER_SKIPPED_IN_CI = ("ssh", "netns", "site")
# What is just ending gets this long before it counts as left behind.
LEAK_GRACE_S = 20.0
LOGIN_SHELLS = ("fish", "tcsh", "zsh")

# How long an example takes says more about this machine's other work than about the code.
hypothesis.settings.register_profile("miniray", deadline=None)
hypothesis.settings.load_profile("miniray")

_failed = pytest.StashKey[bool]()
_directory = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Give this session its own temporary directory and key, before anything asks for them."""
    # Ignored signals are inherited, handlers are not: `make test &` ignores SIGINT, nohup SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    for name in list(os.environ):
        if name.startswith("MINIRAY_") and name != "MINIRAY_CI":
            del os.environ[name]
    # pytest's own tmp_path stays where people look for it. Ours is short, because a Unix socket's
    # path may have no more than 107 bytes.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    directory = tempfile.mkdtemp(prefix=f"{leaks.namespace_prefix()}-")
    config.stash[_directory] = directory
    os.environ["TMPDIR"] = tempfile.tempdir = directory
    key_path = Path(directory, "key")
    key_path.touch(mode=0o600)
    key_path.write_text(secrets.token_hex(32) + "\n")
    os.environ["MINIRAY_KEY_FILE"] = str(key_path)
    processes.watch_forks()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_directory], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marked = any(item.get_closest_marker(name) for name in NEVER_SKIPPED_IN_CI)
    if IN_CI and marked and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI it must run: {report.longrepr}"
    if report.failed:
        item.stash[_failed] = True
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if the fixtures themselves left something behind."""
    empty = leaks.Snapshot(frozenset(), leaks.take_snapshot().descriptors, frozenset())
    if left := leaks.find(empty, timeout_s=LEAK_GRACE_S):
        leaks.end_new_processes(empty)
        print("\nleft behind after the last test:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    # Coordinators that were killed leave their notices in this user's home; who looks removes them.
    find_clusters()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what a file of tests does not name for Ray, where each start takes a second."""
    for item in items:
        chosen = getattr(getattr(item, "module", None), "ON_RAY", None)
        name = getattr(item, "originalname", "")
        if isinstance(chosen, set) and item.get_closest_marker("ray") and name not in chosen:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def connected_to_ray() -> None:
    """Connect to the Ray that tests.support.ray_head has started, if it has, once for all tests."""
    if "RAY_ADDRESS" in os.environ:
        import ray

        from miniray import NodeConfig
        from miniray.extras.ray_cluster import RayCluster

        ray.init(logging_level="warning")
        with RayCluster(
            [NodeConfig.local()], start_timeout=240.0
        ) as cluster:  # some connections it makes on first use
            cluster.start("tests.work.echo")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, zombie, descriptor, port, namespace or directory."""
    before = leaks.take_snapshot()
    yield
    # A failed test's traceback keeps its variables alive, so what it left is no second failure.
    failed = request.node.stash.get(_failed, False)
    left = leaks.find(before, timeout_s=0.5 if failed else LEAK_GRACE_S)
    if left:
        leaks.end_new_processes(before)
    if left and not failed:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def key_file() -> Path:
    """Return the session's key file, which $MINIRAY_KEY_FILE names."""
    return Path(os.environ["MINIRAY_KEY_FILE"])


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, with no warning allowed; return where it is."""
    for module in ("mkdocs", "mkdocstrings"):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed: make docs")
    from tools.site import __main__ as site
    from tools.site import blocks

    folder = tmp_path_factory.mktemp("site")
    site.generate()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=blocks.REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="session")
def netns_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[namespaces.Nodes]:
    """Yield two nodes and a coordinator in network namespaces, with a real sshd on each node."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    nodes = namespaces.Nodes(tmp_path_factory.mktemp("netns"))
    yield nodes
    nodes.close()


@pytest.fixture(scope="session")
def loopback_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssh.LoopbackNodes]:
    """Yield node1 and node2, which both are an sshd on 127.0.0.1, run by whoever runs the tests."""
    if reason := ssh.missing():
        pytest.skip(reason)
    with ssh.loopback_nodes(tmp_path_factory.mktemp("sshd")) as nodes:
        yield nodes


@pytest.fixture(params=LOGIN_SHELLS)
def login_shell_sshd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ssh.LoopbackNodes]:
    """Yield a loopback sshd whose user logs in with fish, then tcsh, then zsh."""
    shell = shutil.which(request.param)
    if reason := ssh.missing() or (None if shell else f"there is no {request.param}"):
        pytest.skip(reason)
    with ssh.loopback_nodes(tmp_path, force_command=ssh.login_shell(str(shell))) as nodes:
        yield nodes


@pytest.fixture
def noisy_sshd(tmp_path: Path) -> Iterator[ssh.LoopbackNodes]:
    """Yield a loopback sshd whose user has start-up files that print junk on both streams."""
    if reason := ssh.missing():
        pytest.skip(reason)
    force_command = ssh.write_noisy_shell(tmp_path / "noisy-shell")
    with ssh.loopback_nodes(tmp_path, force_command=force_command) as nodes:
        yield nodes
