"""The whole pipeline on the CPU: two FSDP2 ranks, vLLM rollouts, a SIGKILL, a resume, and verl's own entry point.

One start of the stack takes about a minute: the killed and resumed run is the second of the comparison in conftest.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from aent_verl.core.controllers import ControllerState
from aent_verl.platforms import weight_sockets
from aent_verl.plugin import saved_state
from aent_verl.runs import metrics, token_records
from aent_verl.runs.protocol import SEED_KEYS
from tests.e2e.conftest import AENT, BAND, CONTROLLERS, RANKS, START_SECONDS, STEPS, Grid, overrides
from tests.e2e.stack import finish, kill, start

pytestmark = pytest.mark.slow


def command(task: Path, folder: Path, *more: str) -> list[str]:
    """What the comparison called to train this run."""
    return [
        *(sys.executable, "-m", "aent_verl.commands.train", *overrides(task), *AENT),
        *(f"{key}=1" for key in SEED_KEYS),
        *(f"run.dir={folder}", f"trainer.experiment_name={folder.name}"),
        *(f"trainer.validation_data_dir={folder}/validation", *more),
    ]


def training(steps: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {step: data for step, data in steps.items() if "aent/entropy" in data}


INITIAL = {axis: controller.initial_state() for axis, controller in CONTROLLERS.items()}


def assert_replay(steps: dict[int, dict[str, float]], states: dict[str, ControllerState]) -> dict[str, ControllerState]:
    """Each logged coefficient is its controller's, applied to the logged entropies in order."""
    for step, data in sorted(training(steps).items()):
        assert data["aent/coefficient"] == states["bonus"].coefficient, step
        assert data["aent/advantages_coefficient"] == states["advantages"].coefficient, step
        entropies = {"bonus": data["aent/entropy"], "advantages": data["aent/entropy_full"]}
        states = {
            axis: controller.update(states[axis], entropy=entropies[axis], step=step)
            for axis, controller in CONTROLLERS.items()
        }
        assert data["aent/coefficient_next"] == states["bonus"].coefficient, step
        assert data["aent/band_side"] == states["bonus"].band_side
        assert data["aent/entropy_mean" if step > 1 else "aent/entropy"] > 0
    return states


def test_weights_reach_vllm_through_sockets_of_this_run(grid: Grid) -> None:
    """Two runs on one machine have the same Ray job id: without the mark they would take each other's."""
    log = (grid.aent / "train.log").read_text(errors="replace")
    assert f"weights go through ipc:///tmp/rl-colocate-zmq-01000000-{weight_sockets.mark_of(grid.aent)}-" in log


def test_coefficients_are_a_replay_of_the_controller_over_the_logged_entropies(grid: Grid) -> None:
    """Validation ran before, between and after these steps: it did not move the controller."""
    assert sorted(training(grid.killed))[:3] == [1, 2, 3]
    assert_replay(grid.killed, INITIAL)
    moved = [data["aent/coefficient"] for data in training(grid.killed).values()]
    assert moved[0] == moved[1] == BAND["init"]
    assert moved[2] > moved[1]


def test_killed_and_resumed_continues_as_if_never_killed(grid: Grid) -> None:
    assert grid.saved == assert_replay({step: grid.killed[step] for step in (1, 2)}, INITIAL)
    assert sorted(training(grid.resumed)) == [3, 4]
    for key, axis in (("aent/coefficient", "bonus"), ("aent/advantages_coefficient", "advantages")):
        assert grid.resumed[3][key] == grid.killed[3][key] == grid.saved[axis].coefficient
    # The diagnostic's state came back, too: the change is that from step 2 to step 3.
    change = grid.resumed[3]["aent/entropy_full"] - grid.killed[2]["aent/entropy_full"]
    assert grid.resumed[3]["aent/entropy_change"] == pytest.approx(change)
    assert assert_replay(grid.resumed, grid.saved) == grid.final
    # Though importing vLLM's server sets the driver's root logger to errors alone.
    assert ":controllers resumed from " in (grid.aent / "train.log").read_text(errors="replace")


def test_the_shaping_of_rewards_is_resumed(grid: Grid) -> None:
    assert {f"aent/ares_{name}": value for name, value in grid.saved_rewards.items()}.items() <= grid.killed[2].items()
    steps = [*training(grid.killed).values(), *training(grid.resumed).values()]
    assert len({data["aent/ares_threshold"] for data in steps}) == 1
    assert all(data["aent/rewards_added_abs"] > 0 for data in steps)
    # Half of the step size is as far as they move in a step.
    for name in ("alpha_easy", "alpha_medium", "alpha_hard"):
        assert abs(grid.resumed[3][f"aent/ares_{name}"] - grid.saved_rewards[name]) <= 0.025


def test_every_rank_reports_our_engine_loss_and_settings(grid: Grid) -> None:
    assert [report["rank"] for report in grid.reports] == list(range(RANKS))
    for report in grid.reports:
        assert report["engine"] == "EntropyControlEngine"
        assert report["loss"] == "entropy_control_loss"
        assert report["controller"] == str(CONTROLLERS["bonus"])
        assert report["coefficient"] == grid.saved["bonus"].coefficient
        assert report["advantages_coefficient"] == grid.saved["advantages"].coefficient
        assert report["device"] == "cpu"


def test_rollout_engine_gets_the_trained_weights(grid: Grid) -> None:
    """Rollout and trainer probabilities agree after updates; with stale weights they drift apart."""
    for data in [*training(grid.killed).values(), *training(grid.resumed).values()]:
        assert data["training/rollout_actor_probs_pearson_corr"] > 0.999


def test_metrics_are_all_there_and_sane(grid: Grid) -> None:
    for data in training(grid.killed).values():
        assert 0 < data["aent/entropy"] <= data["aent/entropy_full"] + 1e-6
        assert 0 <= data["aent/removed_mass"] < 0.5
        assert data["aent/bonus_loss"] == pytest.approx(-data["aent/coefficient"] * data["aent/entropy"], rel=0.2)
        assert data["aent/nonfinite_steps"] == 0
        assert data["aent/coefficient_at_bound"] == 0
        assert data["aent/band_side"] == -1 or data["aent/entropy"] >= BAND["low"]
        assert "actor/entropy" in data
        assert not [key for key in data if key.startswith("actor/aent")]


def test_tokens_of_the_first_samples_are_dumped_whatever_rank_had_them(grid: Grid) -> None:
    records = token_records.read_records(grid.aent)
    assert {(record.step, record.sample) for record in records} >= {(step, s) for step in (1, 2, 3, 4) for s in (0, 1)}
    for record in records:
        assert record.sample < 2
        assert len(record.tokens) == sum(record.in_loss)
        assert all(h >= 0 for h in record.entropy)
        assert set(record.bonus_weight) == {1.0}
        assert record.score in (0.0, 1.0)
        # mu is what multiplies positive advantages.
        steps = grid.killed if record.step < 3 else grid.resumed
        mu = steps[record.step]["aent/advantages_coefficient"]
        for advantage, weight in zip(record.advantage, record.policy_weight, strict=True):
            assert weight == (None if advantage == 0 else pytest.approx(mu if advantage > 0 else 1.0))


def test_terminal_shows_checks_banner_steps_and_results(grid: Grid) -> None:
    terminal = (grid.aent / "train.console.log").read_text()
    for part in ("checked: reward", "entropy control active on 2 rank(s)", "4/4", "plot.png"):
        assert part in terminal, terminal
    assert "Traceback" not in terminal
    assert (grid.aent / "plot.png").stat().st_size > 10_000
    assert list((grid.aent / "tensorboard").glob("events*"))


def test_finished_run_is_not_started_again(grid: Grid, task: Path) -> None:
    arguments = command(task, grid.aent, "trainer.max_actor_ckpt_to_keep=3")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True, cwd=grid.aent)
    # The only setting that differs from the run's.
    assert "started with other settings; now trainer.max_actor_ckpt_to_keep=3 (was 2). For" in done.stdout
    assert "this run is complete: step 4 of 4" in done.stdout


def test_resume_without_a_state_stops_before_ray_and_names_the_way_out(grid: Grid, task: Path) -> None:
    """States that cannot be used for other reasons: tests/unit/plugin/test_state_file.py."""
    path = grid.aent / "checkpoints" / f"global_step_{STEPS}" / saved_state.NAME
    original = path.read_text()
    try:
        path.unlink()
        arguments = command(task, grid.aent, "trainer.total_training_steps=6")
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, cwd=grid.aent)
    finally:
        path.write_text(original)
    assert done.returncode == 1
    assert "has no entropy_control.json" in done.stderr
    assert "entropy_control.restart_controller=true" in done.stderr


@pytest.fixture(scope="module")
def own_script(task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    """``python -m verl.trainer.main_ppo`` with our trainer and presets, as in users' own scripts.

    One rank, GRPO with a LoRA adapter and a KL penalty.
    """
    from aent_verl.platforms import cpu

    folder = tmp_path_factory.mktemp("own_script")
    # Of the answers of a group hardly ever all are right or all wrong by this: without a difference nothing is learnt.
    (folder / "score.py").write_text(
        "def compute_score(solution_str, **_):\n    return sum(solution_str.encode()) % 2\n"
    )
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose("aent_trainer", overrides=["experiment=cpu_arithmetic"])
    arguments = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "hydra.searchpath=[pkg://aent_verl._config]",
        "+entropy_control=grpo",
        "+platform=cpu",
        "algorithm.adv_estimator=grpo",
        f"data.train_files={task}/train.parquet",
        f"data.val_files={task}/validation.parquet",
        f"actor_rollout_ref.model.path={task}/model",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.max_model_len=128",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        "actor_rollout_ref.actor.use_kl_loss=true",
        f"data.max_prompt_length={cfg.data.max_prompt_length}",
        f"data.max_response_length={cfg.data.max_response_length}",
        "data.train_batch_size=8",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        f"reward.custom_reward_function.path={folder}/score.py",
        "trainer.total_training_steps=3",
        "trainer.critic_warmup=2",
        "trainer.val_before_train=false",
        "trainer.logger=[console,file]",
    ]
    environment = cpu.runtime_env_vars() | {"VERL_FILE_LOGGER_PATH": str(folder / metrics.METRICS_FILE)}
    finish(start(arguments, folder / "out", **environment), folder / "out", START_SECONDS)
    return metrics.read_run(folder)


def test_users_own_main_ppo_scripts_work(own_script: dict[int, dict[str, float]]) -> None:
    """And GRPO measures: a coefficient of zero does not switch the measurement off, nor adds a loss."""
    assert sorted(own_script) == [1, 2, 3]
    for step in (2, 3):
        data = own_script[step]
        assert data["aent/entropy"] > 0
        assert data["aent/entropy"] == pytest.approx(data["aent/entropy_full"])
        assert data["aent/coefficient"] == data["aent/bonus_loss"] == 0.0


def test_a_step_that_updates_no_actor_leaves_the_controller_alone(own_script: dict[int, dict[str, float]]) -> None:
    assert not [key for key in own_script[1] if key.startswith("aent/")]


def test_an_adapter_trains_and_vllm_generates_with_it(own_script: dict[int, dict[str, float]]) -> None:
    """Step 3 samples after the first update. Far from the reference, the model without the adapter, vLLM's
    probabilities are the trainer's: it has the adapter.
    """
    assert own_script[3]["actor/kl_loss"] > 0.05
    for data in own_script.values():
        assert data["training/rollout_probs_diff_max"] < 1e-3
        assert data["training/rollout_actor_probs_pearson_corr"] > 0.999


def test_entropy_control_that_hydra_has_not_found_stops_verls_own_entry(tmp_path: Path) -> None:
    """Without our search path the key is a bare word: verl's own trainer asks us, in Ray's task runner, and stops."""
    from aent_verl.platforms import cpu

    arguments = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", "+entropy_control=aent"),
        *("trainer.device=cpu", "algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.name=vllm"),
        *("actor_rollout_ref.actor.use_dynamic_bsz=true", "ray_kwargs.ray_init.num_cpus=16"),
        *(
            "+ray_kwargs.ray_init.include_dashboard=false",
            "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        ),
    ]
    run = start(arguments, tmp_path / "out", **cpu.runtime_env_vars())
    try:
        assert run.wait(timeout=START_SECONDS) != 0
    finally:
        kill(run)
    said = (tmp_path / "out").read_text()
    assert "PlugInNotActiveError" in said
    assert "hydra.searchpath=[pkg://aent_verl._config] +entropy_control=aent" in said
