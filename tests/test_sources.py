"""Which code goes along to a node, and that it works there as it does at home."""

import io
import json
import os
import subprocess
import sys
import zipapp
import zipfile
from pathlib import Path
from typing import Any

import pytest

import miniray
from miniray import bootstrap
from miniray.sources import SOURCES_BYTES_MAX, collect_sources, find_code

T = 60.0
PACKAGE = Path(miniray.__file__).parent

RUN = """if True:
    import json, sys
    from miniray import Cluster, NodeConfig
    folder, work_fn = sys.argv[1:]
    # A node that has Python and an empty folder, not even PYTHONPATH.
    node = NodeConfig("bare", launcher=("/usr/bin/env", "-i", "/bin/sh", "-c"),
                      python=sys.executable, workdir=folder)
    if __name__ == "__main__":
        with Cluster([node]) as cluster:
            print(json.dumps(cluster.start(work_fn)[0].recv(40)))
"""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return the folder where the user's code is and from where they start."""
    (tmp_path / "node").mkdir()
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def first_word(here: Path, work_fn: str = "train.work_fn", **env: str) -> Any:
    """Return what a worker, on a node without any of the files, sends first."""
    return run_on_bare_node(["-c", RUN], here, work_fn, **env)


def run_on_bare_node(program: list[str], here: Path, work_fn: str, **env: str) -> Any:
    ended = subprocess.run(
        [sys.executable, *program, str(here.parent / "node"), work_fn],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **env},
        capture_output=True,
        text=True,
        timeout=T,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def packed(monkeypatch: pytest.MonkeyPatch, folder: Path, work_fn: str) -> set[str]:
    """Return the paths of the user's files that go along."""
    monkeypatch.syspath_prepend(folder)
    names = zipfile.ZipFile(io.BytesIO(collect_sources(work_fn))).namelist()
    assert len(names) == len(set(names))
    return {name for name in names if not name.startswith("miniray/")}


class TestWhatIsSent:
    def test_a_package_beside_a_lone_module(self, here: Path) -> None:
        write(
            here,
            {
                "train.py": (
                    "import os, config, models\nfrom utils.data import word\n"
                    "def work_fn(channel):\n    channel.send([word, config.lr, models.size])\n"
                ),
                "config.py": "lr = 3\n",
                "models/__init__.py": "from .parts.layer import size\n",
                "models/parts/layer.py": "size = 8\n",
                "utils/data.py": "word = 'from a namespace package'\n",
            },
        )
        assert first_word(here) == ["from a namespace package", 3, 8]

    def test_modules_beside_a_package(self, here: Path) -> None:
        write(
            here,
            {
                "project/train.py": (
                    "import common\nfrom shared.words import word\n"
                    "def work_fn(channel):\n    channel.send([word, common.lr])\n"
                ),
                "common.py": "lr = 3\n",
                "shared/words.py": "word = 'beside'\n",
            },
        )
        assert first_word(here, "project.train.work_fn") == ["beside", 3]

    def test_every_folder_of_a_namespace_package(self, here: Path, tmp_path: Path) -> None:
        write(here, {"space/train.py": "from space.far import work_fn\n", "space/both.py": "v = 1"})
        elsewhere = {
            "space/far.py": (
                "import space.both\ndef work_fn(channel):\n    channel.send(space.both.v)\n"
            ),
            "space/both.py": "v = 2",
        }
        write(tmp_path / "elsewhere", elsewhere)
        path = f"{PACKAGE.parent}{os.pathsep}{tmp_path / 'elsewhere'}"
        assert first_word(here, "space.train.work_fn", PYTHONPATH=path) == 1

    def test_a_src_layout_whose_script_is_in_scripts(self, here: Path) -> None:
        write(
            here,
            {
                "scripts/train.py": (
                    "import beside\nfrom project.model import size\n"
                    "def work_fn(channel):\n"
                    "    import importlib.resources\n"
                    "    words = importlib.resources.files('project').joinpath('words.txt')\n"
                    "    channel.send([size, beside.word, words.read_text()])\n"
                ),
                "scripts/beside.py": "word = 'beside'\n",
                "src/project/__init__.py": "",
                "src/project/model.py": "from .parts import size\nimport other\n",
                "src/project/parts.py": "size = 8\n",
                "src/project/words.txt": "data",
                "src/other.py": "import third\n",
                "src/third.py": "",
                "src/unused.py": "raise ImportError('nobody has asked for it')\n",
            },
        )
        path = os.pathsep.join(map(str, (PACKAGE.parent, here / "scripts", here / "src")))
        assert first_word(here, PYTHONPATH=path) == [8, "beside", "data"]

    def test_a_sentence_is_no_import(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(here, {"data/token.txt": "secret", "wanted.py": "", "other.py": ""})
        monkeypatch.syspath_prepend(here)
        text = (
            'def f():\n    """All the way\n    from data to weights.\n    """\n'
            "    from wanted \\\n        import this\n    from other.one import(that)\n"
        )
        assert find_code("__main__.f", text).keys() == {"wanted.py", "other.py"}

    def test_a_namespace_package_of_which_each_folder_imports_its_own(
        self, here: Path, tmp_path: Path
    ) -> None:
        """Have one half of it beside the script, and the other on the path."""
        write(
            here,
            {
                "train.py": "import space.near\nfrom space.near import work_fn\n",
                "space/near.py": (
                    "from space import far\n"
                    "def work_fn(channel):\n    channel.send([far.word, far.helper.word])\n"
                ),
            },
        )
        elsewhere = tmp_path / "elsewhere"
        write(elsewhere, {"space/far.py": "import helper\nword = 'far'\n"})
        write(elsewhere, {"helper.py": "word = 'beside far'\n"})
        path = f"{PACKAGE.parent}{os.pathsep}{elsewhere}"
        assert first_word(here, PYTHONPATH=path) == ["far", "beside far"]

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", ["src", "."])
    def test_an_editable_install(self, here: Path, tmp_path: Path, layout: str) -> None:
        """Have pip make it, as far as it is pip's; the finder or the path is setuptools'."""
        project = tmp_path / "project"
        write(
            project,
            {
                "pyproject.toml": (
                    "[build-system]\nrequires = ['setuptools']\n"
                    "build-backend = 'setuptools.build_meta'\n"
                    "[project]\nname = 'somebodys'\nversion = '1.0'\n"
                    "[tool.setuptools.packages.find]\n"
                    f"where = ['{layout}']\ninclude = ['somebodys*']\n"
                ),
                f"{layout}/somebodys/__init__.py": "",
                f"{layout}/somebodys/deep/__init__.py": "word = 'editable'\n",
                f"{layout}/somebodys/deep/words.txt": "data",
            },
        )
        prefix = tmp_path / "prefix"
        how = ["--no-deps", "--no-build-isolation", "--no-index", "--prefix", str(prefix)]
        pip = [sys.executable, "-m", "pip", "install", *how, "--editable", str(project)]
        subprocess.run(pip, check=True, capture_output=True, timeout=T)
        (site,) = prefix.glob("lib/python*/site-packages")
        write(
            here,
            {
                "train.py": (
                    "from somebodys import deep\nimport importlib.resources\n"
                    "def work_fn(channel):\n"
                    "    words = importlib.resources.files(deep).joinpath('words.txt')\n"
                    "    channel.send([deep.word, words.read_text()])\n"
                ),
                # As Python itself does with a folder of packages that are installed.
                "start.py": f"import site; site.addsitedir({str(site)!r})\n{RUN}",
            },
        )
        assert run_on_bare_node(["start.py"], here, "train.work_fn") == ["editable", "data"]

    def test_a_packages_data(self, here: Path) -> None:
        write(
            here,
            {
                "project/__init__.py": "",
                "project/train.py": (
                    "import importlib.resources\nfrom pathlib import Path\n"
                    "def work_fn(channel):\n"
                    "    files = importlib.resources.files('project')\n"
                    "    beside = Path(__file__).parent / 'data' / 'words.txt'\n"
                    "    channel.send([files.joinpath('data/words.txt').read_text(),\n"
                    "                  beside.read_text()])\n"
                ),
                "project/data/words.txt": "caf\u00e9",
            },
        )
        assert first_word(here, "project.train.work_fn") == ["caf\u00e9"] * 2

    def test_nothing_installed_and_nothing_that_only_stands_there(
        self, monkeypatch: pytest.MonkeyPatch, here: Path
    ) -> None:
        write(
            here,
            {
                "alone.py": "import pytest, unused_name, json\n",
                "random.py": "raise ImportError('not the standard library')\n",
                "data/images/1.png": "",
                "notes.txt": "",
                "package/__init__.py": "",
                "package/.git/config": "",
                "package/__pycache__/x.pyc": "",
                "package/venv/pyvenv.cfg": "",
                "package/venv/lib/module.py": "",
            },
        )
        assert packed(monkeypatch, here, "alone.f") == {"alone.py", "package/__init__.py"}
        assert packed(monkeypatch, here, "pytest.main") == set()
        assert packed(monkeypatch, here, "package.f") == {"package/__init__.py"}

    def test_equal_files_make_equal_bytes(self) -> None:
        assert collect_sources("tests.work.echo") == collect_sources("tests.work.echo")

    @pytest.mark.parametrize(
        ("work_fn", "text"),
        [
            ("f", r"MODULE\.FUNCTION"),
            ("__main__.f", r"MODULE\.FUNCTION"),
            ("random.f", "random is a module of Python's own; give yours another name"),
        ],
    )
    def test_a_name_that_cannot_be_meant_is_refused(self, work_fn: str, text: str) -> None:
        with pytest.raises(ValueError, match=text):
            collect_sources(work_fn)


class TestOnTheNode:
    def test_pkgutil_finds_modules(self, here: Path) -> None:
        write(
            here,
            {
                "project/__init__.py": "",
                "project/train.py": (
                    "import pkgutil, project\ndef work_fn(channel):\n"
                    "    channel.send([m.name for m in pkgutil.iter_modules(project.__path__)])\n"
                ),
            },
        )
        assert first_word(here, "project.train.work_fn") == ["train"]

    def test_a_spawned_process_and_a_plain_one_find_the_module(self, here: Path) -> None:
        write(
            here,
            {
                "train.py": (
                    "import multiprocessing, subprocess, sys\n"
                    "def work_fn(channel):\n"
                    "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
                    "        numbers = pool.map(double, [21])\n"
                    "    plain = [sys.executable, '-c', 'import train; print(train.double(4))']\n"
                    "    channel.send([numbers, int(subprocess.check_output(plain, cwd='/'))])\n"
                    "def double(number):\n    return 2 * number\n"
                )
            },
        )
        assert first_word(here) == [[42], 8]

    def test_tracebacks_and_inspect_have_the_lines(self, here: Path) -> None:
        write(
            here,
            {
                "train.py": (
                    "import inspect, traceback\ndef work_fn(channel):\n    try:\n"
                    "        1 / 0  # the line\n    except ZeroDivisionError:\n"
                    "        channel.send([traceback.format_exc(), inspect.getsource(work_fn)])\n"
                )
            },
        )
        trace, source = first_word(here)
        assert 'train.py", line 4, in work_fn\n    1 / 0  # the line' in trace
        assert source.startswith("def work_fn(channel):\n    try:")

    def test_a_worker_can_start_a_cluster_with_the_same_code(self, here: Path) -> None:
        write(
            here,
            {
                "train.py": (
                    "from utils.data import word\nfrom miniray import Cluster, NodeConfig\n"
                    "def work_fn(channel):\n"
                    "    with Cluster([NodeConfig.local()]) as cluster:\n"
                    "        channel.send(cluster.start('train.inner')[0].recv(30))\n"
                    "def inner(channel):\n    channel.send(word)\n"
                ),
                "utils/data.py": "word = 'twice'\n",
            },
        )
        assert first_word(here) == "twice"

    def test_the_folder_is_private_and_nothing_is_left_of_it(self, here: Path) -> None:
        write(
            here,
            {
                "train.py": (
                    "import os\nfrom pathlib import Path\ndef work_fn(channel):\n"
                    "    folder = Path(__file__).parent\n"
                    "    channel.send([str(folder), folder.stat().st_mode & 0o777])\n"
                )
            },
        )
        folder, mode = first_word(here)
        assert mode == 0o700
        assert not Path(folder).exists()

    def test_no_room_for_the_code_is_said(self, tmp_path: Path) -> None:
        gone = tmp_path / "gone"
        with pytest.raises(OSError, match=f"cannot unpack the code there: .*{gone}.*; set TMPDIR"):
            bootstrap.unpack(collect_sources("pytest.main"), str(gone))

    def test_what_was_unpacked_by_half_is_removed(self, tmp_path: Path) -> None:
        with pytest.raises(zipfile.BadZipFile):
            bootstrap.unpack(b"no zip", str(tmp_path))
        assert list(tmp_path.iterdir()) == []


ANSWER = {"train.py": "import beside\ndef work_fn(channel):\n    channel.send(beside.word)\n"}


class TestFilesThatDoNotMatter:
    def test_odd_neighbours_stop_nothing(self, here: Path) -> None:
        write(here, {**ANSWER, "x.py/inside.txt": "", "package/__init__.py": ""})
        (here / ".#train.py").symlink_to("somebody@machine.1234:5678")
        (here / "dangling.py").symlink_to("nowhere")
        (here / "package" / "loop").symlink_to("..")
        (here / "package" / "loop2").symlink_to(".")
        os.mkfifo(here / "package" / "pipe")
        os.mkfifo(here / "pipe.py")
        (here / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nword = 'caf\xe9'\n")
        (here / "broken.py").write_bytes(b"\xff\x00 import :\nimport (\n")
        (here / os.fsdecode(b"package/caf\xe9.txt")).write_text("a name in no encoding")
        (here / "beside.py").write_bytes(b"\xef\xbb\xbffrom latin import word\n")
        assert first_word(here) == "caf\u00e9"

    def test_the_coordinators_locale_is_ascii(self, here: Path) -> None:
        write(here, {**ANSWER, "beside.py": "word = 'caf\u00e9'\n"})
        locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        assert first_word(here, **locale) == "caf\u00e9"

    def test_what_nobody_may_read_stays(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(here, {"alone.py": "", "secret.py": "", "package/__init__.py": "", "package/s/x": ""})
        read_bytes, iterdir = Path.read_bytes, Path.iterdir

        def read_or_fail(path: Path) -> bytes:  # root, who runs some tests, may read anything
            if path.name == "secret.py":
                raise PermissionError(path)
            return read_bytes(path)

        def list_or_fail(path: Path) -> Any:
            if path.name == "s":
                raise PermissionError(path)
            return iterdir(path)

        monkeypatch.setattr(Path, "read_bytes", read_or_fail)
        monkeypatch.setattr(Path, "iterdir", list_or_fail)
        assert packed(monkeypatch, here, "alone.f") == {"alone.py", "package/__init__.py"}

    def test_a_module_that_somebody_made_by_hand(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(here, {"alone.py": "import made_by_hand\n"})
        monkeypatch.setitem(sys.modules, "made_by_hand", type(sys)("made_by_hand"))
        assert packed(monkeypatch, here, "alone.f") == {"alone.py"}


class TestLimit:
    def test_too_much_code_names_the_largest_file(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(here, {"alone.py": "", "large.py": "#" * 1000, "larger.py": "#" * SOURCES_BYTES_MAX})
        with pytest.raises(ValueError, match=r"16 MiB .* alone.f; .* larger\.py with 16777216 byt"):
            packed(monkeypatch, here, "alone.f")

    def test_data_stays_if_there_is_too_much_and_that_is_said(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(here, {"package/__init__.py": "", "package/words.txt": "x", "package/weights.pt": ""})
        os.truncate(here / "package" / "weights.pt", 1 << 40)
        with pytest.warns(UserWarning, match=r"weights\.pt with 1099511627776.*1 files of data"):
            names = packed(monkeypatch, here, "package.f")
        assert names == {"package/__init__.py", "package/words.txt"}

    def test_a_data_set_stays_though_it_is_in_a_package(
        self, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("miniray.sources.FOLDER_ENTRIES_MAX", 100)
        write(
            here,
            {
                "package/__init__.py": "",
                **{f"package/images/{number}.png": "" for number in range(100)},
                "package/images/load.py": "",
            },
        )
        write(tmp_path / "elsewhere", {"common/words.txt": "", "common/tool.py": ""})
        (here / "package" / "common").symlink_to(tmp_path / "elsewhere" / "common")
        assert packed(monkeypatch, here, "package.f") == {
            *("package/__init__.py", "package/images/load.py", "package/common/tool.py"),
        }


def test_a_cluster_starts_from_a_zipapp(here: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    for file in PACKAGE.rglob("*.py"):
        write(app, {f"miniray/{file.relative_to(PACKAGE)}": file.read_text()})
    write(
        app,
        {
            "__main__.py": RUN,
            "train.py": "import beside\ndef work_fn(channel):\n    channel.send(beside.word)\n",
            "beside.py": "word = 'zipped'\n",
        },
    )
    zipapp.create_archive(app, tmp_path / "app.pyz", "/usr/bin/env python3", compressed=True)
    program = [str(tmp_path / "app.pyz")]
    assert run_on_bare_node(program, here, "train.work_fn", PYTHONPATH="") == "zipped"
