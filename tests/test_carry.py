"""`python -m stages carry`: one change, carried through the later stages of a copy of the clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages import snapshots

pytestmark = pytest.mark.thorough

# A comment that stands in every stage's channel.py, and a line of stages 1 to 3 that 4 has changed.
EVERYWHERE = ("# Ctrl-C, and half a message may be out", "# such as Ctrl-C")
UP_TO_3 = ("os.kill(self.pid, number)", "os.kill(self.pid, int(number))")
COPIED = ("stages", "miniray", "tools", "README.md", "docs/from-stage5-to-miniray.md")
ENVIRONMENT = {
    # A git hook that runs the tests would have told git where another repository is.
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    **{
        f"GIT_{who}_{what}": "tests"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


class Clone:
    """A git repository with what the command needs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env=ENVIRONMENT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "as it is")

    def carry(self, *arguments: str, status: int = 0) -> str:
        return self.python("stages", "carry", *arguments, status=status)

    def python(self, module: str, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env={**ENVIRONMENT, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def file(self, stage: int, name: str) -> Path:
        return self.root / "stages" / snapshots.NAMES[stage - 1] / name

    def edit(self, stage: int, name: str, old: str, new: str) -> None:
        text = self.file(stage, name).read_text()
        assert text.count(old) == 1
        self.file(stage, name).write_text(text.replace(old, new))

    def changed(self) -> set[str]:
        lines = self.git("status", "--porcelain", "--untracked-files=all").splitlines()
        return {line[3:] for line in lines}

    def added_and_deleted(self, stage: int, name: str) -> tuple[list[str], list[str]]:
        """Return the lines that are new in a file since the commit, and those that are gone."""
        lines = self.git("diff", "-U0", "HEAD", "--", str(self.file(stage, name))).splitlines()
        marked = [line for line in lines if not line.startswith(("+++", "---"))]
        added, deleted = ([line[1:] for line in marked if line[0] == sign] for sign in "+-")
        return added, deleted


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository in which all tables are as measured, whatever they are in ours."""
    root = tmp_path_factory.mktemp("template")
    for name in COPIED:
        source, copy = snapshots.REPOSITORY / name, root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    reasons = []
    for one in snapshots.compare(snapshots.load("5"), snapshots.load("miniray")):
        reasons.append(f"[{one.module}]")
        if one.names:
            reasons.append(f'addition = [{{names = {json.dumps(one.names)}, reason = "So."}}]')
    (root / "stages" / "additions.toml").write_text("\n".join(reasons))
    (root / ".gitignore").write_text("__pycache__/\n")
    clone = Clone(root)
    clone.python("tools.count_lines", "--write")
    clone.python("stages", "table", "--write")
    clone.python("stages", "additions", "--write")
    clone.git("init", "--quiet")
    clone.commit()
    return root


@pytest.fixture
def clone(template: Path, tmp_path: Path) -> Clone:
    shutil.copytree(template, tmp_path / "clone")
    return Clone(tmp_path / "clone")


def test_a_line_is_carried_to_the_last_stage_and_nothing_else(clone: Clone) -> None:
    clone.edit(1, "channel.py", *EVERYWHERE)
    said = clone.carry("1")
    assert clone.changed() == {f"stages/{name}/channel.py" for name in snapshots.NAMES}
    for stage in (2, 3, 4, 5):
        assert f"stage {stage}: channel.py has it now" in said
        added, deleted = clone.added_and_deleted(stage, "channel.py")
        assert [len(added), len(deleted)] == [1, 1]
        assert EVERYWHERE[1] in added[0]


def test_a_stage_in_the_middle_carries_forward_only(clone: Clone) -> None:
    clone.edit(3, "channel.py", *EVERYWHERE)
    clone.carry("3")
    assert clone.changed() == {f"stages/{name}/channel.py" for name in snapshots.NAMES[2:]}


def test_what_is_carried_is_not_carried_twice(clone: Clone) -> None:
    clone.edit(1, "channel.py", *EVERYWHERE)
    clone.carry("1")
    once = clone.git("diff")
    assert "stage 5: channel.py has it already" in clone.carry("1")
    assert clone.git("diff") == once
    clone.edit(1, "channel.py", "is more to receive", "is something")
    clone.carry("1")
    for stage in range(1, 6):
        added, _ = clone.added_and_deleted(stage, "channel.py")
        assert [len(added), EVERYWHERE[1] in "".join(added)] == [2, True]


def test_what_was_undone_by_hand_is_carried_again(clone: Clone) -> None:
    clone.edit(1, "channel.py", *EVERYWHERE)
    clone.carry("1")
    once = clone.git("diff")
    clone.git("checkout", "--quiet", *(f"stages/{name}" for name in snapshots.NAMES[1:]))
    clone.carry("1")
    assert clone.git("diff") == once


class TestConflict:
    @pytest.fixture
    def said(self, clone: Clone) -> str:
        clone.edit(2, "process.py", *UP_TO_3)
        return clone.carry("2", status=1)

    def test_it_stops_and_says_where_and_how_to_go_on(self, clone: Clone, said: str) -> None:
        lines = clone.file(4, "process.py").read_text().splitlines()
        mark = next(number for number, line in enumerate(lines, 1) if line.startswith("<<<<<<< "))
        assert f"stages/stage4_ssh_cluster/process.py:{mark}: " in said
        assert said.endswith("and go on with\n  python -m stages carry 4\n")
        assert UP_TO_3[1] in clone.file(3, "process.py").read_text()
        assert "stages/stage5_nccl_fsdp/process.py" not in clone.changed()

    def test_it_does_not_go_on_while_marks_are_left(self, clone: Clone, said: str) -> None:
        before = clone.git("diff")
        for stage in ("2", "4"):
            assert "stopped at stage 4" in clone.carry(stage, status=1)
        assert clone.git("diff") == before

    @pytest.mark.parametrize("from_stage", ["4", "2"])
    def test_a_decision_is_carried_on(self, clone: Clone, said: str, from_stage: str) -> None:
        file = clone.file(4, "process.py")
        text = file.read_text()
        begin, end = text.index("<<<<<<< "), text.index(">>>>>>> ")
        end = text.index("\n", end) + 1
        decided = "                _signal_group(self.pid, int(number))\n"
        file.write_text(text[:begin] + decided + text[end:])
        clone.carry(from_stage)
        assert file.read_text() == clone.file(5, "process.py").read_text()
        assert decided in file.read_text()


def test_a_stage_may_have_more_below_what_has_changed(clone: Clone) -> None:
    """The last lines of stage 2's file are changed, and stage 3 has a function below them."""
    for stage in (2, 3, 4, 5):
        path = clone.file(stage, "test_retry.py")
        path.write_text("TIMES = 2\n" + "\n\ndef test_retry() -> None:\n    pass\n" * (stage > 2))
    clone.commit()
    clone.edit(2, "test_retry.py", "TIMES = 2", "TIMES = 3")
    clone.carry("2")
    assert clone.file(5, "test_retry.py").read_text().startswith("TIMES = 3\n\n\ndef test_retry()")


def test_a_file_comes_and_goes_with_its_stage(clone: Clone) -> None:
    new = {stage: clone.file(stage, "test_retry.py") for stage in range(2, 6)}
    new[2].write_text('"""Try again."""\n')
    assert "stage 3: test_retry.py is new" in clone.carry("2")
    assert {file.read_text() for file in new.values()} == {'"""Try again."""\n'}
    clone.commit()
    new[2].unlink()
    new[4].write_text('"""Try again, and wait in between."""\n')
    said = clone.carry("2", status=1)
    assert "stage 3: test_retry.py is deleted" in said
    assert "test_retry.py: stage 3 has none any more; delete it, or keep it" in said
    new[4].unlink()
    clone.carry("4")
    assert not any(file.exists() for file in new.values())


def test_a_dry_run_says_everything_and_writes_nothing(clone: Clone) -> None:
    clone.edit(2, "process.py", *UP_TO_3)
    clone.edit(2, "channel.py", *EVERYWHERE)
    before = clone.git("diff")
    said = clone.carry("2", "--dry-run", status=1)
    assert "stage 4: channel.py has it now" in said
    assert "stage4_ssh_cluster/process.py:" in said
    assert clone.git("diff") == before
    assert "stopped at stage 4" in clone.carry("2", status=1)


def test_a_change_that_is_committed_is_carried_since_a_revision(clone: Clone) -> None:
    clone.edit(1, "channel.py", *EVERYWHERE)
    clone.commit()
    assert "nothing else has changed since HEAD (see --since)" in clone.carry("1")
    clone.carry("1", "--since", "HEAD~1")
    assert clone.changed() == {f"stages/{name}/channel.py" for name in snapshots.NAMES[1:]}


def test_the_tables_are_written_anew(clone: Clone) -> None:
    clone.edit(4, "auth.py", "import hmac\n", "import hmac\n\nNEW = 1\n")
    clone.carry("4")
    assert {"stages/README.md", "docs/from-stage5-to-miniray.md"} <= clone.changed()


def test_what_is_a_stages_own_stays(clone: Clone) -> None:
    clone.edit(2, "README.md", "# Stage 2", "# The second stage")
    assert "README.md is each stage's own, and is not carried" in clone.carry("2")
    assert clone.changed() == {"stages/stage2_remote_worker/README.md"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("6",), "there is no stage 6; name 1, 2, 3 or 4"),
        (("0",), "there is no stage 0"),
        (("1", "--since", "no-such"), "git rev-parse failed"),
    ],
)
def test_what_cannot_be_carried_is_said(
    clone: Clone, arguments: tuple[str, ...], words: str
) -> None:
    assert words in clone.carry(*arguments, status=2)
