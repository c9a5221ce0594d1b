"""The stages are what they say: complete, alone, small steps, and the same tests all the way."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stages import __main__ as tool
from stages import parts, snapshots
from stages.capabilities import CAPABILITIES, MINIRAY
from tests.support import namespaces, ssh

REPOSITORY = snapshots.REPOSITORY
STAGES = REPOSITORY / "stages"
# The course asks for about 200 lines a step. Stages 3 to 5 are one idea each, and take more.
STEP_ADDED_LINES_MAX = 285
STEP_DELETED_LINES_MAX = 40
STAGE_1_LINES_MAX = 205
T = 120


def run(*argv: str, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=T,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


class TestSteps:
    @pytest.mark.parametrize("which", "2345")
    def test_a_step_keeps_its_budget(self, which: str) -> None:
        before, after = (snapshots.load(str(int(which) - back)) for back in (1, 0))
        changes = snapshots.compare(before, after)
        added = {change.module: change.added for change in changes}
        deleted = {change.module: change.deleted for change in changes}
        assert 0 < sum(added.values()) <= STEP_ADDED_LINES_MAX, added
        assert sum(deleted.values()) <= STEP_DELETED_LINES_MAX, deleted

    def test_the_first_stage_is_two_screens(self) -> None:
        modules = snapshots.load("1").modules
        lines = {name: len(snapshots.code_lines(text)) for name, text in modules.items()}
        assert sum(lines.values()) <= STAGE_1_LINES_MAX, lines

    @pytest.mark.parametrize("which", "2345")
    def test_no_module_and_no_public_name_is_lost(self, which: str) -> None:
        """Except stage 1's `decode_prelude`, which stage 2's Decoder makes its own."""
        before, after = (snapshots.load(str(int(which) - back)) for back in (1, 0))
        assert not {*before.modules} - {*after.modules}
        for module, text in before.modules.items():
            lost = {*snapshots.names_in(text)} - {*snapshots.names_in(after.modules[module])}
            public = {name for name in lost if not name.rpartition(".")[2].startswith("_")}
            assert public <= {"decode_prelude"}

    def test_names_are_those_of_miniray(self) -> None:
        stage, miniray = snapshots.load("5"), snapshots.load("miniray")
        assert {*stage.modules} <= {*miniray.modules}
        theirs = {name for text in miniray.modules.values() for name in snapshots.names_in(text)}
        for text in stage.modules.values():
            classes = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
            assert {name for name in classes if not name.startswith("_")} <= theirs

    @pytest.mark.parametrize("which", "1234")
    def test_a_stages_tests_are_in_the_next_one_unchanged(self, which: str) -> None:
        folder, following = (STAGES / snapshots.NAMES[int(which) - 1 + on] for on in (0, 1))
        tests = sorted(folder.glob("test_*.py"))
        assert tests
        for test in tests:
            assert test.read_bytes() == (following / test.name).read_bytes()

    @pytest.mark.parametrize("which", "2345")
    def test_what_is_not_meant_to_differ_is_the_same(self, which: str) -> None:
        before, after = (snapshots.load(str(int(which) - back)) for back in (1, 0))
        meant = tomllib.loads((STAGES / "differences.toml").read_text())[f"stage{which}"]
        found = snapshots.differences(before, after)
        for name in {*meant, *found}:
            new = {*found.get(name, [])} - {*meant.get(name, [])}
            assert not new, (
                f"{before.name} and {after.name} differ in {name}.py, {sorted(new)}: carry your "
                f"change by `python -m stages carry {int(which) - 1}`, or name it in "
                "stages/differences.toml"
            )
            old = {*meant.get(name, [])} - {*found.get(name, [])}
            assert not old, f"{name}.py no longer differs in {sorted(old)}: take it out of the list"

    @pytest.mark.parametrize(
        ("file", "old", "new", "piece"),
        [
            ("channel", "self._sock.fileno()", "-1", "Channel.fileno"),
            ("worker", "# the child has its own", "# it has its own", "Worker.__init__"),
            ("worker", "REAP_S = 1.0", "REAP_S = 2.0", "(module)"),
            ("test_worker", '"hard exit"', '"soft exit"', "obey"),
            ("auth", "\n\n\ndef ", "\n\n\n\ndef ", "(layout)"),
        ],
    )
    def test_an_edit_of_one_copy_alone_is_noticed(
        self, file: str, old: str, new: str, piece: str
    ) -> None:
        before, after = snapshots.load("3"), snapshots.load("4")
        assert file not in snapshots.differences(before, after)
        texts = after.modules if file in after.modules else after.others
        assert old in texts[file]
        texts[file] = texts[file].replace(old, new, 1)
        assert snapshots.differences(before, after)[file] == [piece]

    @pytest.mark.parametrize("name", snapshots.NAMES)
    def test_a_stage_imports_no_other_and_nothing_that_is_not_there(self, name: str) -> None:
        for path in (STAGES / name).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                imported = []
                if isinstance(node, ast.Import):
                    imported = [one.name for one in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level <= 1, f"{path}:{node.lineno}"
                    imported = [node.module or ""] if node.level == 0 else []
                for module in imported:
                    top = module.partition(".")[0]
                    installed = {"torch"} if name == snapshots.NAMES[-1] else set()
                    assert top in sys.stdlib_module_names | installed, f"{path}:{node.lineno}"


class TestWords:
    @pytest.mark.parametrize("name", snapshots.NAMES)
    def test_a_readme_has_the_idea_the_invariants_the_commands_and_the_limits(
        self, name: str
    ) -> None:
        text = (STAGES / name / "README.md").read_text()
        for part in ("**The idea.**", "## What holds", "## Two commands", "## What it cannot do"):
            assert part in text
        idea = text.partition("**The idea.**")[2].partition("\n\n")[0]
        assert 4 <= len(re.findall(r"[.:]\s", idea + " ")) <= 7, idea
        for command in (f"python -m stages.{name}.demo", f"python -m pytest stages/{name}"):
            assert f"$ {command}\n" in text

    def test_the_tables_are_as_measured(self) -> None:
        text = tool.README.read_text()
        expected = tool.fill(text, "stages", tool.make_tables())
        assert text == expected, "run: python -m stages table --write"

    def test_every_addition_of_miniray_has_its_reason(self) -> None:
        text = tool.ADDITIONS_PAGE.read_text()
        expected = tool.fill(text, "additions", tool.make_additions())
        assert text == expected, "run: python -m stages additions --write"

    def test_every_claim_is_tested(self) -> None:
        tested: set[str] = set()
        for path in (REPOSITORY / "tests" / "contracts").glob("test_*.py"):
            tested |= {*re.findall(r'@contract\("([\w-]+)"\)', path.read_text())}
        for one in CAPABILITIES:
            if one.since < MINIRAY:
                assert one.key in tested
            else:
                file, *_, name = one.proof.split("::")
                assert f"def {name}(" in (REPOSITORY / file).read_text()


class TestTool:
    def test_diff_shows_files_names_lines_and_code(self) -> None:
        text = run("-m", "stages", "diff", "1", "2").stdout
        assert re.search(r"wire\.py +\+\d+ +-\d+", text)
        assert "remote_worker.py" in text
        assert "Decoder.advance" in text
        assert '+MAGIC = b"MRY1"' in text
        assert '"""' not in text

    def test_summary_and_markdown(self) -> None:
        summary = run("-m", "stages", "diff", "2", "3", "--summary").stdout
        assert "auth.py" in summary
        assert "@@" not in summary
        page = run("-m", "stages", "diff", "4", "5", "--markdown").stdout
        assert "| `nccl.py` |" in page
        assert "    ```diff" in page

    def test_without_a_command_it_lists_the_stages(self) -> None:
        text = run("-m", "stages").stdout
        assert all(f"\n  {which} " in f"\n{text}" for which in "12345")

    def test_a_stage_that_is_not_there_is_said(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "stages", "diff", "1", "7"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "there is no stage '7'; name 1, 2, 3, 4, 5 or miniray" in done.stderr

    def test_a_missing_reason_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        text = tool.ADDITIONS.read_text()
        file = tmp_path / "additions.toml"
        file.write_text(text.replace('"welcome", ', ""))
        monkeypatch.setattr(tool, "ADDITIONS", file)
        with pytest.raises(ValueError, match=r"auth: .* \+welcome"):
            tool.make_additions()

    def test_a_reason_may_be_for_all_that_a_pattern_matches(self) -> None:
        names = ["LIMIT", "Door", "Door.open", "Door._hinge", "_walk"]
        change = snapshots.Change("house", [], ["x"], names, ("", ""))
        for given in (["*"], ["Door*", "*"], ["LIMIT", "Door", "Door.open", "Door._*", "_*"]):
            tool.check_reasons([change], {"house": {"addition": [{"names": given}]}})
        for given in (["Door*"], ["Window*", "*"], ["Window", "*"]):
            with pytest.raises(ValueError, match=r"house: .* [+-](LIMIT|Window)"):
                tool.check_reasons([change], {"house": {"addition": [{"names": given}]}})
        change.before.append("y")
        with pytest.raises(ValueError, match=r"\+Door"):
            tool.check_reasons([change], {"house": {"addition": [{"names": ["*"]}]}})


class TestParts:
    @pytest.mark.parametrize("stage", range(1, 6))
    def test_every_new_line_belongs_to_exactly_one_part(self, stage: int) -> None:
        lines = parts.new_lines(stage)
        homeless = {f"{one.module}.py: {one.piece}" for one in lines if not one.part}
        assert not homeless, f"name them in stages/parts.toml: {sorted(homeless)}"
        ours = [part for part in parts.load() if part.stage == stage]
        names = [
            (module, name) for part in ours for module, named in part.code.items() for name in named
        ]
        assert len(names) == len({*names}), "a piece is named twice"
        there = {(one.module, one.piece) for one in lines}
        there |= {(module, "*") for module, _ in there}
        assert {*names} <= there, "a piece that is named has no new line"

    def test_a_part_is_as_large_as_a_sitting(self) -> None:
        for part in parts.load():
            assert parts.LINES_MIN <= part.size <= parts.LINES_MAX or part.why, part
            assert not (parts.LINES_MIN <= part.size <= parts.LINES_MAX and part.why), part

    @pytest.mark.parametrize("stage", range(1, 6))
    def test_the_parts_tests_are_the_stages_each_once(self, stage: int) -> None:
        found = [
            test for part in parts.load() if part.stage == stage for test in parts.test_ids(part)
        ]
        assert sorted(found) == sorted(parts.all_tests(stage))
        for part in parts.load():
            for given in part.tests if part.stage == stage else []:
                assert any(f"{test}.".startswith(f"{given}.") for test in found), given

    def test_show_prints_whole_functions_and_else_what_is_new(self) -> None:
        text = run("-m", "stages", "show", "2.1").stdout
        assert "# stage2_remote_worker/wire.py: 39 new lines\n" in text
        assert "\n    def advance(self, nbytes: int) -> Frame | None:\n" in text
        assert text.count("\nclass Decoder:\n") == 1
        assert "BODY_BYTES_MAX = 64" not in text, "stage 1 has it"
        first = run("-m", "stages", "show", "1.1").stdout
        assert 'class WorkerDied(WorkerError):\n    """The worker ended without a word' in first
        ast.parse(first)
        assert "def detect_lost_peer" not in text, "2.2 has it"

    def test_test_runs_a_parts_tests_and_no_others(self) -> None:
        done = run("-m", "stages", "test", "1.1")
        assert "a function that returns is done now and ever after ... ok" in done.stderr
        assert "Ran 11 tests" in done.stderr
        assert "zombie" not in done.stderr

    def test_test_runs_on_the_readers_own_copy(self, tmp_path: Path) -> None:
        copy = tmp_path / "mine" / snapshots.NAMES[0]
        shutil.copytree(STAGES / snapshots.NAMES[0], copy, ignore=shutil.ignore_patterns("test_*"))
        argv = ("-m", "stages", "test", "1.1", "--in", str(tmp_path / "mine"))
        assert "OK" in run(*argv).stderr
        wire = copy / "wire.py"
        wire.write_text(wire.read_text().replace("PRELUDE.pack(", "PRELUDE.pack(1 + "))
        done = subprocess.run(
            [sys.executable, *argv], cwd=REPOSITORY, capture_output=True, text=True, timeout=T
        )
        assert done.returncode == 1, done.stderr

    def test_pytest_knows_a_parts_tests_by_keyword(self) -> None:
        argv = ("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
        # Else it would take what other tests have in /tmp for its own.
        text = run(*argv, "stages/stage3_worker_server", "-k", "part3.2", MINIRAY_CI="").stdout
        found = [line.partition("/test_")[2] for line in text.splitlines() if "::" in line]
        wanted = [test.replace(".", ".py::", 1) for test in parts.test_ids(parts.find("3.2"))]
        assert sorted(found) == sorted(
            one.removeprefix("test_").replace(".test_", "::test_") for one in wanted
        )

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (("show", "7.1"), "there is no part '7.1'; name one of 1.1, 1.2, 2.1"),
            (("test", "1.1", "--in", "/no/such"), "python -m exercises start 1 makes"),
        ],
    )
    def test_what_is_not_there_is_said(self, argv: tuple[str, ...], words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "stages", *argv], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert words in done.stderr


DEMOS = {
    "stage1_uds_worker": ("01 00 00 00 09", "WorkerDied", "it has been reaped"),
    "stage2_remote_worker": ("4d 52 59 31 01", "TimeoutError", "ConnectionError"),
    "stage3_worker_server": (".signal is 9", "AuthenticationError", "workers left: none"),
    "stage4_ssh_cluster": ("[node2:rank3]", "17984 primes", "node3: ", "workers left: none"),
    "stage5_nccl_fsdp": ("1/8.00 of that", "step 11", "rank 5 at node2:", "WorkerFailed: rank 0"),
}


class TestEachAlone:
    """As a reader has it who copied the folder elsewhere: with Python, and torch for stage 5."""

    @pytest.fixture(params=snapshots.NAMES)
    def name(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        name: str = request.param
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(STAGES / name, tmp_path / name, ignore=ignored)
        return name

    @staticmethod
    def flags(name: str) -> tuple[str, ...]:
        """Without site-packages, there is nothing but Python."""
        return () if name == "stage5_nccl_fsdp" else ("-S",)

    @pytest.mark.slow
    def test_its_demo_runs(self, name: str, tmp_path: Path) -> None:
        shown = run(*self.flags(name), "-m", f"{name}.demo", cwd=tmp_path).stdout
        for words in DEMOS[name]:
            assert words in shown, shown

    @pytest.mark.slow
    def test_its_tests_pass(self, name: str, tmp_path: Path) -> None:
        done = run(
            *(*self.flags(name), "-m", "unittest", "discover", "-s", name, "-t", "."), cwd=tmp_path
        )
        assert re.search(r"Ran \d\d+ tests", done.stderr)
        assert done.stderr.endswith("OK\n"), done.stderr


@pytest.fixture
def miniray_with_tests(tmp_path: Path) -> Path:
    """Return a directory with a copy of miniray that has stage 5's tests in it, unchanged."""
    package = tmp_path / "miniray"
    shutil.copytree(REPOSITORY / "miniray", package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*(STAGES / snapshots.NAMES[-1]).glob("test_*.py")]:
        shutil.copy(path, package)
    shutil.copy(STAGES / snapshots.NAMES[-1] / "train.py", package)
    return tmp_path


@pytest.mark.slow
def test_the_stages_tests_pass_on_miniray(miniray_with_tests: Path) -> None:
    argv = ("-m", "unittest", "discover", "-s", "miniray", "-t", ".")
    assert run(*argv, cwd=miniray_with_tests, PYTHONPATH="").stderr.endswith("OK\n")


class TestOverSsh:
    """The stages' own tests of a cluster, with two hosts that a real sshd stands for."""

    @staticmethod
    def environment(options: tuple[str, ...]) -> dict[str, str]:
        return {
            "MINIRAY_TEST_HOSTS": ",".join(ssh.HOSTS),
            "MINIRAY_TEST_SSH": shlex.join(options),
        }

    @pytest.mark.ssh
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["stage4_ssh_cluster", "stage5_nccl_fsdp"])
    def test_on_loopback(self, name: str, loopback_sshd: ssh.LoopbackNodes) -> None:
        done = run(
            *("-m", "unittest", f"stages.{name}.test_cluster"),
            **self.environment(loopback_sshd.ssh_options),
        )
        assert done.stderr.endswith("OK\n"), done.stderr

    @pytest.mark.ssh
    @pytest.mark.netns
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "module",
        [
            "stage4_ssh_cluster.test_cluster",
            "stage5_nccl_fsdp.test_cluster",
            "stage5_nccl_fsdp.test_nccl",
        ],
    )
    def test_over_two_namespaces(self, module: str, netns_nodes: namespaces.Nodes) -> None:
        done = netns_nodes.run(
            [sys.executable, "-m", "unittest", f"stages.{module}"],
            env=self.environment(netns_nodes.ssh_options),
            timeout=T,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        netns_nodes.wait_until_empty(timeout_s=15)
