"""A copy of a folder on a node: what goes along, how little goes twice, and what can be wrong."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from miniray import Cluster, ClusterError, NodeConfig, rsync, sync
from miniray.session import Session
from miniray.sync import Folder
from tests.support import poll, processes, ssh

T = 30.0

# What a node without anything of ours, not even a HOME, is started with.
BARE = ("/usr/bin/env", "-i", "/bin/sh", "-c")

LOOK = """
import os, sys

def work_fn(channel):
    for order in channel:
        channel.send(eval(order))
"""


def git(folder: Path, *words: str) -> None:
    folder.mkdir(exist_ok=True)
    settings = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", "-C", str(folder), *settings, *words], check=True, capture_output=True)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of somebody's project, in git, with a work module called `looking`."""
    folder = tmp_path / "project"
    git(folder, "init", "-q")
    write(folder, {"looking.py": LOOK, "data/words.txt": "one two"})
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Return the folder in which a node keeps its copies."""
    return tmp_path / "cache" / "miniray" / "sync"


def bare(there: Path, launcher: Sequence[str] = BARE, **options: Any) -> NodeConfig:
    env = {"XDG_CACHE_HOME": str(there.parents[1])}
    return NodeConfig("bare", launcher=launcher, python=sys.executable, env=env, **options)


def ask(workers: list[Any], *orders: str) -> list[Any]:
    for worker in workers:
        for order in orders:
            worker.send(order)
    return [[worker.recv(T) for _ in orders] for worker in workers]


def look(nodes: Sequence[NodeConfig], *orders: str, **options: Any) -> list[Any]:
    with Cluster(nodes, sync=".", **options) as cluster:
        return ask(cluster.start("looking.work_fn"), *orders)


FILES = (
    "sorted(os.path.relpath(os.path.join(at, name)) for at, _, names in os.walk('.')"
    " for name in names if not name.endswith('.pyc'))"
)
WHERE = ("os.getcwd()", "sys.path[0]", "sys.modules['looking'].__file__")


@contextlib.contextmanager
def counted_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect how many bytes go to the nodes, in each piece."""
    counts: list[int] = []
    send = Session.send

    def count(session: Session, data: bytes, deadline: float) -> bool:
        counts.append(len(data))
        return send(session, data, deadline)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "send", count)
        yield counts


def bytes_of_a_start(monkeypatch: pytest.MonkeyPatch, node: NodeConfig) -> int:
    with counted_bytes(monkeypatch) as counts:
        look([node])
    return sum(counts)


@pytest.mark.ssh
@pytest.mark.parametrize("tunnel", [False, True])
def test_workers_of_real_nodes_work_in_their_copies(
    project: Path, there: Path, loopback_sshd: ssh.LoopbackNodes, tunnel: bool
) -> None:
    write(project, {".gitignore": "secret\n", "secret": "1", "new.txt": "not yet added"})
    nodes = [
        NodeConfig(
            host,
            python=sys.executable,
            ssh_options=loopback_sshd.ssh_options,
            env={"XDG_CACHE_HOME": str(there.parents[1])},
            tunnel=tunnel,
        )
        for host in loopback_sshd.hosts
    ]
    answers = look(nodes, *WHERE, FILES, "open('data/words.txt').read()")
    copies = [answer[0] for answer in answers]
    assert len(set(copies)) == 2
    # Each has its own whoever is first, though both are one machine.
    assert not any(copy.endswith(".2") for copy in copies)
    for copy, answer in zip(copies, answers, strict=True):
        assert Path(copy).parent == there
        assert Path(copy).name.startswith("project-")
        files = [".gitignore", "data/words.txt", "looking.py", "new.txt"]
        assert answer == [copy, copy, f"{copy}/looking.py", files, "one two"]


def test_a_node_of_this_machine_works_in_the_folder_itself(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_bytes(monkeypatch) as counts:
        ((*where, _),) = look([NodeConfig.local()], *WHERE, FILES)
    assert where == [str(project), str(project), f"{project}/looking.py"]
    assert len(counts) == 1  # the settings and MiniRay itself


def test_a_node_with_a_workdir_of_its_own_gets_no_copy(
    project: Path, there: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    write(own, {"data/words.txt": "its own"})
    answer = look([bare(there, workdir=str(own))], "os.getcwd()", "open('data/words.txt').read()")
    assert answer == [[str(own), "its own"]]
    assert not there.exists()


class TestOnlyWhatChangedTravels:
    def test_a_second_start_sends_almost_nothing(
        self, project: Path, there: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = os.urandom(3 << 20)
        write(project, {"large.bin": large, "other.bin": large})
        least = bytes_of_a_start(monkeypatch, NodeConfig.local())
        first, second = (bytes_of_a_start(monkeypatch, bare(there)) for _ in range(2))
        assert first > least + 2 * len(large)
        assert second < least + 1000
        write(project, {"other.bin": large[:900_000]})
        third = bytes_of_a_start(monkeypatch, bare(there))
        assert least + 900_000 < third < least + 950_000
        (copy,) = there.glob("project-*[!n]")
        assert (copy / "other.bin").read_bytes() == large[:900_000]

    def test_what_is_gone_here_goes_there_and_what_a_run_has_made_stays(
        self, project: Path, there: Path
    ) -> None:
        write(project, {"package/old.py": "", "package/deep/a.txt": "", "stays.txt": ""})
        compile_it = "__import__('package.old') and __import__('compileall').compile_dir('.')"
        make = "os.mkdir('out') or open('out/checkpoint', 'w').write('x')"
        look([bare(there)], compile_it, make)
        (copy,) = there.glob("project-*[!n]")
        assert list(copy.glob("package/__pycache__/old.*.pyc"))
        for name in ("package/old.py", "package/deep/a.txt"):
            (project / name).unlink()
        ((files, has_package),) = look([bare(there)], FILES, "os.path.exists('package')")
        assert files == ["data/words.txt", "looking.py", "out/checkpoint", "stays.txt"]
        assert not has_package  # which would be a namespace package

    def test_what_a_run_has_changed_there_is_as_here_again(
        self, project: Path, there: Path
    ) -> None:
        look([bare(there)], "open('data/words.txt', 'a').write('!') and os.unlink('looking.py')")
        ((words, files),) = look([bare(there)], "open('data/words.txt').read()", FILES)
        assert words == "one two"
        assert "looking.py" in files

    def test_a_file_may_become_a_folder_and_a_link_a_file(self, project: Path, there: Path) -> None:
        write(project, {"becomes": "a file", "folder/x": "in a folder"})
        (project / "link").symlink_to("data/words.txt")
        (project / "linked").symlink_to("data")
        look([bare(there)])
        for name in ("becomes", "link", "linked", "folder/x"):
            (project / name).unlink()
        (project / "folder").rmdir()
        now = {"becomes/a.txt": "1", "link": "a file", "linked/words.txt": "own", "folder": "file"}
        write(project, now)
        contents = f"[open(name).read() for name in {[*now]}]"
        assert look([bare(there)], contents, "open('data/words.txt').read()") == [
            [[*now.values()], "one two"]
        ]

    def test_what_a_run_has_put_a_link_to_is_not_removed(
        self, project: Path, there: Path, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        write(elsewhere, {"words.txt": "not ours"})
        put_link = f"__import__('shutil').rmtree('data') or os.symlink({str(elsewhere)!r}, 'data')"
        look([bare(there)], put_link)
        (project / "data/words.txt").unlink()
        look([bare(there)])
        assert (elsewhere / "words.txt").read_text() == "not ours"

    def test_a_file_that_is_gone_while_others_are_sent_and_comes_back(
        self, project: Path, there: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words, aside = project / "data/words.txt", project.parent / "aside"
        send = Folder.send

        def send_without(folder: Folder, *args: Any) -> None:
            words.rename(aside)
            send(folder, *args)

        with monkeypatch.context() as patched:
            patched.setattr(Folder, "send", send_without)
            look([bare(there)])
        aside.rename(words)
        assert look([bare(there)], "open('data/words.txt').read()") == [["one two"]]

    def test_a_run_beside_another_has_a_copy_of_its_own(self, project: Path, there: Path) -> None:
        with Cluster([bare(there)], sync=".") as one:
            first = one.start("looking.work_fn")
            ((where, _),) = ask(first, "os.getcwd()", "open('data/words.txt').read()")
            write(project, {"data/words.txt": "three"})
            (other,) = look([bare(there)], "os.getcwd()", "open('data/words.txt').read()")
            assert other == [f"{where}.2", "three"]
            assert ask(first, "open('data/words.txt').read()") == [["one two"]]
        assert look([bare(there)], "os.getcwd()", "open('data/words.txt').read()") == [
            [where, "three"]
        ]


# A launcher that notes in a file, one for each, how much goes to its node, and ends when that does.
COUNTING = """if True:
    import os, subprocess, sys, threading
    shell = ["/usr/bin/env", "-i", *os.environ.get("NODE_ENV", "").split(), "/bin/sh", "-c"]
    node = subprocess.Popen([*shell, sys.argv[2]], stdin=subprocess.PIPE)
    nbytes = 0
    def copy():
        global nbytes
        while data := os.read(0, 1 << 16):
            nbytes += len(data)
            with open(os.path.join(sys.argv[1], str(os.getpid())), "w") as file:
                file.write(str(nbytes))
            os.write(node.stdin.fileno(), data)
        node.stdin.close()
    threading.Thread(target=copy, daemon=True).start()
    os._exit(node.wait())
"""


def taken(counts: Path) -> list[int]:
    """Return how many bytes went through each launcher, in ascending order, and forget them."""
    numbers = sorted(int(file.read_text()) for file in counts.iterdir())
    for file in counts.iterdir():
        file.unlink()
    return numbers


@pytest.mark.skipif(not rsync.is_here(), reason="there is no rsync; install it")
class TestRsync:
    @pytest.fixture
    def counts(self, tmp_path: Path) -> Path:
        (tmp_path / "counts").mkdir()
        return tmp_path / "counts"

    @pytest.fixture
    def node(self, there: Path, counts: Path) -> NodeConfig:
        return bare(there, (sys.executable, "-c", COUNTING, str(counts)))

    @pytest.fixture
    def large(self, project: Path, node: NodeConfig, counts: Path) -> Path:
        """Return a large file of which all but a few bytes are on the node, and some small ones."""
        write(project, {"deep/large file.bin": os.urandom(5 << 20), "small.txt": "1"})
        look([node])
        taken(counts)
        file = project / "deep" / "large file.bin"
        changed_ns = file.stat().st_mtime_ns
        with file.open("r+b") as opened:
            opened.seek(2 << 20)
            opened.write(b"a few bytes")
        # Within the same second, where it has the same size.
        os.utime(file, ns=(changed_ns, changed_ns // 10**9 * 10**9 + (changed_ns + 1) % 10**9))
        write(project, {"small.txt": "2", "new.bin": os.urandom(1000)})
        return file

    def arrives(self, node: NodeConfig, large: Path, **options: Any) -> bool:
        look([node], **options)
        (copy,) = Path(node.env["XDG_CACHE_HOME"], "miniray", "sync").glob("project-*[!n]")
        ours = [large, large.parents[1] / "small.txt", large.parents[1] / "new.bin"]
        theirs = [copy / file.relative_to(large.parents[1]) for file in ours]
        return [file.read_bytes() for file in ours] == [file.read_bytes() for file in theirs]

    def test_sends_the_difference_of_a_large_file(
        self, node: NodeConfig, large: Path, counts: Path
    ) -> None:
        assert self.arrives(node, large)
        by_rsync, session = taken(counts)
        assert by_rsync < 100_000
        assert session < 1_000_000
        assert self.arrives(node, large)
        assert len(taken(counts)) == 1  # and there is nothing for rsync to do

    @pytest.mark.parametrize("side", ["here", "there"])
    def test_is_not_needed(
        self,
        node: NodeConfig,
        large: Path,
        counts: Path,
        monkeypatch: pytest.MonkeyPatch,
        side: str,
    ) -> None:
        if side == "here":
            monkeypatch.setattr(rsync, "is_here", lambda: False)
        else:
            monkeypatch.setenv("NODE_ENV", "PATH=/nowhere")
        assert self.arrives(node, large)
        (session,) = taken(counts)
        assert session > 5 << 20

    @pytest.mark.parametrize("how", ["fails", "hangs"])
    def test_what_it_cannot_do_is_done_without_it(
        self,
        node: NodeConfig,
        large: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        how: str,
    ) -> None:
        fake = tmp_path / "bin" / "rsync"
        ends = "echo no such option >&2; exit 1" if how == "fails" else "exec sleep 100"
        write(tmp_path, {"bin/rsync": f"#!/bin/sh\n{ends}\n"})
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        log = io.StringIO()
        assert self.arrives(node, large, log=log, start_timeout=8.0)
        why = "status 1: no such option" if how == "fails" else "it took too long"
        assert f"sending whole files, because of rsync: {why}" in log.getvalue()

    @pytest.mark.ssh
    def test_goes_over_ssh(
        self, project: Path, there: Path, loopback_sshd: ssh.LoopbackNodes
    ) -> None:
        node = NodeConfig(
            "node1",
            python=sys.executable,
            ssh_options=loopback_sshd.ssh_options,
            env={"XDG_CACHE_HOME": str(there.parents[1])},
        )
        large = os.urandom(3 << 20)
        write(project, {"large.bin": large})
        look([node])
        write(project, {"large.bin": large + b"more"})
        log = io.StringIO()
        digest = "__import__('hashlib').sha256(open('large.bin', 'rb').read()).hexdigest()"
        assert look([node], digest, log=log) == [[hashlib.sha256(large + b"more").hexdigest()]]
        assert "because of rsync" not in log.getvalue()


class TestWhatGoesAlong:
    def test_without_git_all_but_what_nobody_wants(self, tmp_path: Path) -> None:
        wanted = {"a.py": "", "data/.hidden": "", "line\nbreak": "", "caf\udce9": ""}
        unwanted = {".venv/x": "", "env/pyvenv.cfg": "", "env/lib/x.py": "", "__pycache__/x": ""}
        for name in [*wanted, *unwanted]:
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True, parents=True)
            file.touch()
        (tmp_path / "loop").symlink_to(".")
        os.mkfifo(tmp_path / "pipe")
        assert set(Folder(tmp_path, {}).files) == {*wanted, "loop"}

    def test_by_gits_word(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        write(tmp_path, {"gone.py": "", "kept.py": ""})
        git(tmp_path, "add", ".")
        (tmp_path / "gone.py").unlink()
        git(tmp_path / "inner", "init", "-q")  # a submodule is listed alike
        write(tmp_path, {"inner/x.py": "", "inner/.gitignore": "*.bin", "inner/x.bin": ""})
        write(tmp_path, {"env/pyvenv.cfg": "", "env/x.py": "", "node_modules/x.js": ""})
        assert set(Folder(tmp_path, {}).files) == {"kept.py", "inner/x.py", "inner/.gitignore"}
        assert set(Folder(tmp_path / "inner", {}).files) == {"x.py", ".gitignore"}

    def test_a_folder_that_git_ignores_as_a_whole(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        write(tmp_path, {".gitignore": "scratch", "scratch/x.py": ""})
        assert set(Folder(tmp_path / "scratch", {}).files) == {"x.py"}

    def test_git_need_not_be_there(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert set(Folder(project, {}).files) == {"looking.py", "data/words.txt"}

    def test_what_is_imported_goes_though_git_ignores_it(self, project: Path, there: Path) -> None:
        write(project, {".gitignore": "made_*", "made_version.py": "number = 3"})
        write(project, {"looking.py": f"import made_version\n{LOOK}"})
        answer = look([bare(there)], "made_version.number", "made_version.__file__")
        (copy,) = there.glob("project-*[!n]")
        assert answer == [[3, f"{copy}/made_version.py"]]

    def test_code_behind_a_link_to_a_folder_elsewhere(
        self, project: Path, there: Path, tmp_path: Path
    ) -> None:
        write(tmp_path / "elsewhere", {"common/tool.py": "word = 'behind the link'"})
        write(project, {"package/__init__.py": ""})
        (project / "package" / "common").symlink_to(tmp_path / "elsewhere" / "common")
        write(project, {"looking.py": f"from package.common import tool\n{LOOK}"})
        where = "os.path.relpath(tool.__file__)"
        for _ in range(2):
            answer = look([bare(there)], "tool.word", where, "os.path.islink('package/common')")
            assert answer == [["behind the link", "package/common/tool.py", False]]
        tool = "package/common/tool.py"
        assert (
            not {"package", "package/common"} & Folder(project, {tool: project / tool}).files.keys()
        )

    def test_modules_are_found_where_they_are_here(
        self, project: Path, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Have the script in scripts/, a package in src/, and a module outside of the folder."""
        write(project, {"scripts/train.py": f"import helpers, far\n{LOOK}"})
        write(project, {"src/helpers/__init__.py": "", "src/helpers/words.txt": "data"})
        write(tmp_path / "elsewhere", {"far.py": "word = 'far'"})
        for folder in (project / "src", tmp_path / "elsewhere", project / "scripts"):
            monkeypatch.syspath_prepend(folder)
        orders = (
            "[os.path.relpath(one) for one in sys.path[:3]]",
            "[os.path.relpath(one) for one in helpers.__path__]",
            "__import__('importlib.resources').resources.files('helpers')"
            ".joinpath('words.txt').read_text()",
            "far.word",
        )
        for node in (bare(there), NodeConfig.local()):
            with Cluster([node], sync=str(project)) as cluster:
                (answer,) = ask(cluster.start("train.work_fn"), *orders)
            assert answer == [[".", "scripts", "src"], ["src/helpers"], "data", "far"]

    def test_links_modes_and_empty_files_arrive_as_they_are(
        self, project: Path, there: Path
    ) -> None:
        write(project, {"run.sh": "#!/bin/sh\n", "empty": "", "line\nbreak": "1"})
        (project / "run.sh").chmod(0o755)
        (project / "link").symlink_to("data/words.txt")
        (project / os.fsdecode(b"caf\xe9")).write_text("a name in no encoding")
        answer = look(
            [bare(there)],
            "os.readlink('link')",
            "oct(os.stat('run.sh').st_mode & 0o777)",
            "os.stat('empty').st_size",
            "open('line\\nbreak').read()",
            "open(b'caf\\xe9').read()",
        )
        assert answer == [["data/words.txt", "0o755", 0, "1", "a name in no encoding"]]

    def test_a_spawned_process_works_in_the_copy_too(self, project: Path, there: Path) -> None:
        write(project, {"src/beside.py": "def double(number):\n    return 2 * number\n"})
        text = """
            import multiprocessing, subprocess, sys
            from beside import double

            def work_fn(channel):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    numbers = pool.map(double, [21])
                plain = [sys.executable, "-c", "import beside; print(beside.double(4))"]
                channel.send([numbers, int(subprocess.check_output(plain, cwd="/"))])
        """
        write(project, {"looking.py": textwrap.dedent(text)})
        sys.path.insert(0, str(project / "src"))
        try:
            with Cluster([bare(there)], sync=".") as cluster:
                assert cluster.start("looking.work_fn")[0].recv(T) == [[42], 8]
        finally:
            sys.path.remove(str(project / "src"))


class TestFaults:
    def test_a_folder_that_is_not_there(self, project: Path, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match="nowhere to the nodes: there is no such folder"):
            Cluster([NodeConfig.local()], sync=str(tmp_path / "nowhere")).start("looking.work_fn")

    def test_a_repository_that_git_refuses_is_not_copied_as_a_whole(self, project: Path) -> None:
        write(project, {".git/config": "no configuration"})
        with pytest.raises(ClusterError, match=r"git does not list it: fatal: bad config"):
            Cluster([NodeConfig.local()], sync=".").start("looking.work_fn")

    def test_a_folder_that_is_too_large_names_the_largest_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, {"large.bin": "", "small.bin": "12"})
        os.truncate(tmp_path / "large.bin", 3 << 30)
        text = r"2 files, 3072 MiB, and the limit is .*the largest are large.bin \(3221225472 bytes"
        with pytest.raises(ClusterError, match=text):
            Folder(tmp_path, {})
        os.truncate(tmp_path / "large.bin", 3)
        monkeypatch.setattr(sync, "FILES_MAX", 1)
        with pytest.raises(ClusterError, match=r"Name in \.gitignore what"):
            Folder(tmp_path, {})

    def test_no_place_for_the_copy_is_said_with_a_remedy(
        self, project: Path, tmp_path: Path
    ) -> None:
        write(tmp_path, {"file": ""})
        node = bare(tmp_path / "file" / "miniray" / "sync")
        text = r"bare: cannot copy the folder to .*file/miniray/sync there: .*Not a directory.*XDG_"
        with pytest.raises(ClusterError, match=text):
            Cluster([node, NodeConfig.local()], sync=".").start("looking.work_fn")

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
    @pytest.mark.parametrize("how", ["another's", "everybody's"])
    def test_a_place_where_others_could_put_code_is_refused(
        self, project: Path, there: Path, how: str
    ) -> None:
        there.parent.mkdir(parents=True)
        if how == "another's":
            os.chown(there.parent, 1234, -1)
        else:
            there.parent.chmod(0o777)
        text = r"others could put code into .*/miniray, which is not yours alone.*XDG_"
        with pytest.raises(ClusterError, match=text):
            Cluster([bare(there)], sync=".").start("looking.work_fn")

    def test_a_full_disk_is_said_and_what_has_arrived_need_not_come_again(
        self, project: Path, there: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(project, {"a.bin": os.urandom(200_000), "b.bin": os.urandom(900_000)})
        # No file there may be larger than so many blocks of 512 bytes.
        limited = (*BARE[:-1], "-c", 'ulimit -f 1000; exec /bin/sh -c "$0"')
        with pytest.raises(ClusterError, match=r"bare: cannot copy the folder.*File too large"):
            Cluster([bare(there, limited)], sync=".").start("looking.work_fn")
        least = bytes_of_a_start(monkeypatch, NodeConfig.local())
        assert 900_000 < bytes_of_a_start(monkeypatch, bare(there)) - least < 1_000_000

    def test_a_folder_that_a_run_has_made_where_a_file_is_to_come(
        self, project: Path, there: Path
    ) -> None:
        look([bare(there)], "os.mkdir('results')")
        write(project, {"results": "a file"})
        with pytest.raises(ClusterError, match=r"results is a folder that a run has made; remove"):
            look([bare(there)])

    def test_a_file_that_cannot_be_read_here_is_named(
        self, project: Path, there: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(project, {"secret.key": "1"})
        real = open

        def read_or_fail(path: Any, *mode: str) -> Any:  # root, who runs some tests, may read all
            if Path(path).name == "secret.key":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *mode)

        monkeypatch.setattr(sync, "open", read_or_fail, raising=False)
        with pytest.raises(ClusterError, match=r"bare: .*Permission denied.*secret\.key"):
            Cluster([bare(there)], sync=".").start("looking.work_fn")


# A launcher whose node gets so many bytes, and then no more.
STALLING = """if True:
    import os, signal, subprocess, sys
    node = subprocess.Popen(["/bin/sh", "-c", sys.argv[1]], stdin=subprocess.PIPE)
    left = 600_000
    while left and (data := os.read(0, min(left, 4096))):
        os.write(node.stdin.fileno(), data)
        left -= len(data)
    while left == 0:
        signal.pause()
"""


class TestSlowLinks:
    def test_the_start_timeout_bounds_it_and_the_next_start_goes_on(
        self, project: Path, there: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(40):
            write(project, {f"{number:02}.bin": os.urandom(100_000)})
        log = io.StringIO()
        stalling = bare(there, (sys.executable, "-c", STALLING))
        text = r"while it took its code in: .*raise start_timeout, or start again"
        with pytest.raises(ClusterError, match=text):
            Cluster([stalling], sync=".", start_timeout=3.0, log=log).start("looking.work_fn")
        assert "copying 42 files, 3.8 MiB, to " in log.getvalue()
        least = bytes_of_a_start(monkeypatch, NodeConfig.local())
        again = bytes_of_a_start(monkeypatch, bare(there)) - least
        assert 2_000_000 < again < 3_950_000

    @pytest.mark.thorough
    def test_ctrl_c_leaves_nothing(self, project: Path, there: Path) -> None:
        write(project, {"large.bin": os.urandom(3_000_000)})
        script = f"""if True:
            from miniray import Cluster, NodeConfig
            from tests.test_sync import STALLING, bare
            import pathlib, sys
            node = bare(pathlib.Path({str(there)!r}), (sys.executable, "-c", STALLING))
            Cluster([node], sync=".").start("looking.work_fn")
        """
        repository = Path(__file__).parents[1]
        path = os.pathsep.join([str(repository), str(project)])
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=project,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        ) as coordinator:
            assert coordinator.stderr is not None
            assert "copying" in coordinator.stderr.readline()
            below = [one.pid for one in processes.descendants()]
            coordinator.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in coordinator.stderr.read()
        processes.wait_until_gone(below, timeout_s=10)


def test_the_record_of_a_copy_may_be_damaged(project: Path, there: Path) -> None:
    look([bare(there)])
    (record,) = there.glob("*.json")
    assert json.loads(record.read_text())
    record.write_text("{")
    write(project, {"data/words.txt": "more"})
    assert look([bare(there)], "open('data/words.txt').read()") == [["more"]]
    poll.until(lambda: bool(json.loads(record.read_text())), timeout_s=T)
