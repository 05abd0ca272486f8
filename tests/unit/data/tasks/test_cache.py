import os
import signal
import subprocess
import sys
import textwrap

import pytest

from aent_verl.data.tasks.cache import MANIFEST, build_task


def once(folder, recipe, calls, fail=False):
    def fill(workspace):
        calls.append(recipe)
        (workspace / "model").mkdir()
        (workspace / "model" / "weights").write_text(str(recipe))
        if fail:
            raise RuntimeError("no space")
        (workspace / "data").write_text(str(recipe))
        return {"built": recipe}

    settings = {"setting": recipe}
    return build_task(folder, "test", recipe=1, settings=settings, files=("model", "data"), build=fill)[1]


def test_built_once_and_rebuilt_on_a_changed_recipe(tmp_path, capsys):
    calls = []
    assert once(tmp_path, 1, calls) == once(tmp_path, 1, calls) == {"built": 1}
    assert calls == [1]
    (tmp_path / "mine.txt").write_text("keep")
    assert once(tmp_path, 2, calls) == {"built": 2}
    assert calls == [1, 2]
    assert (tmp_path / "data").read_text() == (tmp_path / "model" / "weights").read_text() == "2"
    assert (tmp_path / "mine.txt").read_text() == "keep"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["built", "using", "rebuilt"]


def test_a_missing_file_is_rebuilt(tmp_path):
    calls = []
    once(tmp_path, 1, calls)
    (tmp_path / "data").unlink()
    once(tmp_path, 1, calls)
    assert calls == [1, 1]
    assert (tmp_path / "data").exists()


def test_a_failed_build_keeps_the_old_result(tmp_path):
    calls = []
    once(tmp_path, 1, calls)
    with pytest.raises(RuntimeError, match="no space"):
        once(tmp_path, 2, calls, fail=True)
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert once(tmp_path, 1, calls) == {"built": 1}
    assert calls == [1, 2]


def test_files_of_someone_else_are_not_touched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("precious")
    with pytest.raises(ValueError, match=r"has model but no manifest.json"):
        once(tmp_path, 1, [])
    assert (tmp_path / "model" / "weights").read_text() == "precious"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from aent_verl.data.tasks import cache

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def fill(folder):
        for name in ("model", "data"):
            (folder / name).write_text("new")
        if sys.argv[2] == "building":
            die()
        return {}

    if sys.argv[2] == "moving":
        replace = os.replace
        def replace_then_die(source, target):
            replace(source, target)
            if Path(target).name == "model":
                die()
        cache.os.replace = replace_then_die
    cache.build_task(
        sys.argv[1], "test", recipe=1, settings={"setting": 2}, files=("model", "data"), build=fill
    )
"""


@pytest.mark.parametrize("moment", ["building", "moving"])
@pytest.mark.parametrize("setting", [1, 2])
def test_killed_half_way(tmp_path, moment, setting):
    calls = []
    once(tmp_path, 1, calls)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    once(tmp_path, setting, calls)
    # Killed before anything was moved, the old result is still good; killed in between, neither is.
    assert calls == ([1] if (moment, setting) == ("building", 1) else [1, setting])
    assert (tmp_path / "data").read_text() == (tmp_path / "model" / "weights").read_text() == str(setting)
    assert sorted(os.listdir(tmp_path)) == [".lock", "data", MANIFEST, "model"]
