"""The paper's two settings as comparisons: they compose, and pass the checks before a start on data made by prepare."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from aent_verl import preflight
from aent_verl.commands.main import main
from aent_verl.comparison.grid import plan
from aent_verl.comparison.grid.settings import parse
from aent_verl.evaluation.settings import long_form, sampling_of
from aent_verl.platforms import cpu
from aent_verl.preflight import machines
from tests.unit.data.prepare import native

GRIDS = sorted(Path("examples/paper").glob("*.yaml"))
# Published: responses in an evaluation, temperature, top_p, top_k, longest response.
SAMPLING = {
    "qwen2.5_math_1.5b_math": (4, 0.6, 0.95, 20, 3072),
    "r1_distill_qwen_1.5b_openr1": (4, 0.6, 0.95, -1, 7168),
}
LONGEST_CONTEXT = 8192


def grid(file: Path, *overrides: str):
    return parse([f"grid={file}", "seeds=[1]", *overrides])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context long enough for the published lengths."""
    from aent_verl.data.tasks import tiny_model

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer()
    tiny_model.save(tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0), tokenizer, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": LONGEST_CONTEXT}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/` as the commands in the grid files make it, from a few rows of each set's native form."""
    root = tmp_path_factory.mktemp("data")
    for name in ("math", "openr1-math", "math-hard", "math500", "aime24", "minerva", "olympiadbench", "amc23"):
        given = []
        for split, rows in native.ROWS[name].items():
            file = root / f"{name}-{split}.jsonl"
            if split == "train":
                rows = [row | {"problem": f"{i}. {row['problem']}"} for i in range(300) for row in rows[:2]]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            given.append(f"{split}={file}")
        assert main(["prepare", name, "--from", *given, "--output", str(root / name)]) == 0
    for folder, names in {
        "data/math": ("math", "math500"),
        "data/openr1": ("openr1-math", "math500", "aime24"),
        "data/eval": ("math-hard", "math500", "aime24", "minerva", "olympiadbench", "amc23"),
    }.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            for file in (root / name).glob("*.parquet"):
                shutil.copy(file, root / folder)
    return root


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_grid_compares_the_published_methods(file: Path, tmp_path: Path):
    chosen = grid(file, f"results={tmp_path}")
    assert (list(chosen.methods), chosen.baseline) == (["grpo", "entreg", "aent"], "grpo")
    for run in plan.plan_runs(chosen):
        assert run.config.entropy_control.method == run.method
        assert run.config.trainer.device == "cuda"


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_models_are_evaluated_as_published(file: Path, tmp_path: Path):
    chosen = grid(file, "methods=[aent]", f"results={tmp_path}")
    (run,) = plan.plan_runs(chosen)
    overrides = long_form(["model=x", *run.evaluation, f"max_response_length={run.config.data.max_response_length}"])
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        sampling = sampling_of(compose("aent_evaluate", overrides))
    found = (sampling.n, sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens)
    assert found == SAMPLING[file.stem]
    assert len(chosen.evaluation["data"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_each_method_passes_the_checks_before_a_start(
    file: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu, "joined_cluster", lambda *_: nullcontext(False))
    monkeypatch.setattr(machines, "available_gib", lambda: 1e6)
    chosen = grid(file.absolute(), "platform=cpu", f"actor_rollout_ref.model.path={model}", f"results={data}/results")
    monkeypatch.chdir(data)
    for run in plan.plan_runs(chosen):
        longest = run.config.data.max_prompt_length + run.config.data.max_response_length
        run.config.actor_rollout_ref.rollout.max_model_len = longest
        checked = "\n".join(row.detail for row in preflight.check_run(run.config) if row.state == "ok")
        assert "600 rows with prompt, data source and ground truth" in checked
        assert "reward: pkg://aent_verl.data.tasks.math_reward scores right answers 1" in checked
    assert all(Path(file).is_file() for file in chosen.evaluation["data"])
