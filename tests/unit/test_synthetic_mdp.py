"""The synthetic MDP: exact classes, an unbiased estimator, theorems that hold, a page that tells its results."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from aent_verl.core.controllers import BandController
from aent_verl.core.entropy import clamped_entropy, full_entropy
from examples.synthetic_mdp import run as script
from examples.synthetic_mdp.experiment import METHODS, jobs
from examples.synthetic_mdp.mdp import (
    ACTIONS,
    INITIAL_LOGITS,
    POSITIONS,
    Start,
    entropy,
    kept_actions,
    largest_useful_coefficient,
    problem,
)
from examples.synthetic_mdp.plot import LINES, figure
from examples.synthetic_mdp.tables import BEGIN, END, interval, put_into_readme, tables
from examples.synthetic_mdp.train import GROUP, Method, _Coefficients, advantages, objective, train

FOLDER = Path(__file__).parents[2] / "examples" / "synthetic_mdp"
EASY = Start(first_rank=1, last_rank=20)


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for one another take long where other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _policy(actions, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(actions, generator=generator, dtype=torch.float64)


# Classes of equal actions; in the second row two classes share a logit, in the third one is empty.
LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [1.0, -2.0, 1.0, 0.0], [3.0, 0.0, -1.0, 0.2]], dtype=torch.float64)
SIZES = torch.tensor([[1.0, 3.0, 5.0, 1.0], [2.0, 4.0, 3.0, 1.0], [0.0, 4.0, 5.0, 1.0]], dtype=torch.float64)


def _written_out(row):
    return LOGITS[row].repeat_interleave(SIZES[row].long())


@pytest.mark.parametrize("clamp_p", [0.0, 0.1, 0.33, 0.5, 0.7, 0.9])
def test_classes_have_the_entropy_and_gradient_of_all_their_actions_written_out(clamp_p: float) -> None:
    keep = torch.full((3, 1), 10 - int(10 * clamp_p), dtype=torch.float64)
    logits = LOGITS.clone().requires_grad_()
    values = entropy(logits, SIZES, keep)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    for row in range(3):
        actions = _written_out(row).requires_grad_()
        expected = clamped_entropy(actions, clamp_p) if clamp_p else full_entropy(actions)
        (each,) = torch.autograd.grad(expected, actions)
        torch.testing.assert_close(values[row], expected)
        of_classes = torch.stack([part.sum() for part in each.split(SIZES[row].long().tolist())])
        torch.testing.assert_close(gradient[row], of_classes)


def test_the_clamp_keeps_as_many_actions_as_asked_and_shares_what_is_tied() -> None:
    keep = torch.tensor([[2.0], [3.0], [7.0]], dtype=torch.float64)
    expected = [[1.0, 0.0, 0.0, 1.0], [1.2, 0.0, 1.8, 0.0], [0.0, 4.0, 2.0, 1.0]]
    torch.testing.assert_close(kept_actions(LOGITS, SIZES, keep), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("clamp_p", [0.0, 0.5])
def test_a_step_follows_the_exact_gradient_on_average_over_all_groups(clamp_p: float) -> None:
    """Two positions, four actions, groups of two episodes: all 16 x 16 groups, each with its probability."""
    coefficient, positions, actions = 0.3, 2, 4
    logits = torch.stack([_policy(actions, seed=1), _policy(actions, seed=2)]).requires_grad_()
    paid = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    keep = torch.full((positions, 1), actions - int(actions * clamp_p), dtype=torch.float64)
    ones, rate = torch.ones_like(paid), torch.full((positions,), coefficient, dtype=torch.float64)
    p = logits.detach().softmax(-1)
    average = torch.zeros_like(p)
    episodes = list(itertools.product(range(actions), repeat=positions))
    for group in itertools.product(episodes, repeat=2):
        sampled = torch.tensor(group).T
        rewards = paid.gather(-1, sampled)
        advantage = advantages(rewards.unsqueeze(0)).squeeze(0).expand_as(rewards)
        climbed, _ = objective(logits, ones, sampled, advantage, rate, keep)
        average += p.gather(-1, sampled).prod() * torch.autograd.grad(climbed, logits)[0]
    bonus = clamped_entropy(logits, clamp_p) if clamp_p else full_entropy(logits)
    exact = ((logits.softmax(-1) * paid).sum(-1) + coefficient * bonus).sum()
    torch.testing.assert_close(average, torch.autograd.grad(exact, logits)[0])
    # By hand, too: p (r - J) - lambda p (log p + H), for the full entropy.
    if not clamp_p:
        expected_reward, each = (p * paid).sum(-1, keepdim=True), full_entropy(p.log()).unsqueeze(-1)
        by_hand = p * (paid - expected_reward) - coefficient * p * (p.log() + each)
        torch.testing.assert_close(average, by_hand)


def test_a_sampled_action_moves_its_class_by_the_mean_over_the_class() -> None:
    logits = LOGITS[:1].clone().requires_grad_()
    sampled, advantage = torch.tensor([[1, 2]]), torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    keep = torch.tensor([[10.0]], dtype=torch.float64)
    climbed, _ = objective(logits, SIZES[:1], sampled, advantage, torch.tensor([0.2], dtype=torch.float64), keep)
    step = (torch.autograd.grad(climbed, logits)[0] / SIZES[:1]).repeat_interleave(SIZES[0].long())
    total = torch.zeros(10, dtype=torch.float64)
    for one, other in itertools.product(range(1, 4), range(4, 9)):
        actions = _written_out(0).requires_grad_()
        log_probs = actions.log_softmax(-1)
        value = (0.7 * log_probs[one] - 0.2 * log_probs[other]) / 2 + 0.2 * full_entropy(actions)
        total += torch.autograd.grad(value, actions)[0] / 15
    torch.testing.assert_close(step, total)


def test_advantages_compare_an_episode_with_the_others_of_its_group() -> None:
    rewards = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])
    torch.testing.assert_close(advantages(rewards), torch.tensor([[[1.5, 0.0, -1.5]]]))


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 30.0])
def test_the_policy_gradient_is_at_most_twice_the_entropy(spread: float) -> None:
    """``|grad J|_2 <= |grad J|_1 <= 2 sum_t (1 - max pi_t) <= 2 sum_t H_t`` for rewards in [0, 1]."""
    for seed in range(50):
        logits = _policy(5 * 40, spread, seed).view(5, 40).requires_grad_()
        rewards = torch.rand(5, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).round()
        p = logits.softmax(-1)
        gradient = torch.autograd.grad((p * rewards).sum(), logits, retain_graph=True)[0]
        from_mode = 2 * (1 - p.amax(-1)).sum()
        slack = 1e-12
        assert gradient.norm() <= gradient.abs().sum() + slack
        assert gradient.abs().sum() <= from_mode + slack
        assert from_mode <= 2 * full_entropy(logits).sum() + slack


def test_the_bound_is_reached_where_one_wrong_action_has_almost_everything() -> None:
    p = torch.tensor([1 - 1e-6, 1e-6], dtype=torch.float64)
    logits = p.log().requires_grad_()
    gradient = torch.autograd.grad(logits.softmax(-1)[1], logits)[0]
    assert float(gradient.abs().sum() / (2 * (1 - p.max()))) == pytest.approx(1, abs=1e-5)


def test_the_theory_column_is_where_the_best_regularised_policy_is_half_wrong() -> None:
    optimal, kept = 3, 200
    coefficient = largest_useful_coefficient(optimal, kept)
    rewards = (torch.arange(kept) < optimal).double()
    logits = (rewards / coefficient).requires_grad_()
    p = logits.softmax(-1)
    objective_value = (p * rewards).sum() + coefficient * full_entropy(logits)
    assert torch.autograd.grad(objective_value, logits, retain_graph=True)[0].abs().max() < 1e-15
    assert float((p * rewards).sum().detach()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", INITIAL_LOGITS)
def test_all_actions_are_there_and_the_optimal_ones_among_the_ranks_asked_for(name: str) -> None:
    made = problem(15, seed=3, start=Start(name))
    assert made.size.sum(-1).tolist() == [ACTIONS] * POSITIONS
    assert made.optimal.sum(-1).tolist() == [15] * POSITIONS
    assert (made.size[made.optimal] == 1).all()
    assert (made.size >= 0).all()
    ends = INITIAL_LOGITS[name](torch.tensor([1000.0, 101.0], dtype=torch.float64)).tolist()
    assert ends[0] - 0.1 <= float(made.logits[made.optimal].min()) <= float(made.logits[made.optimal].max()) <= ends[1]


def test_the_initial_policy_is_close_to_the_one_without_classes() -> None:
    made = problem(1, seed=0, start=Start())
    plain = INITIAL_LOGITS["zipf"](torch.arange(1, ACTIONS + 1, dtype=torch.float64))
    every = torch.full((POSITIONS, 1), float(ACTIONS))
    assert entropy(made.logits, made.size, every).mean() == pytest.approx(float(full_entropy(plain)), rel=0.01)


@pytest.mark.parametrize("method", [Method(), Method(0.02), Method(0.02, 0.99)])
def test_an_easy_problem_is_solved(method: Method) -> None:
    curves = train(10, [method], [0], steps=400, every=400, start=EASY)
    assert float(curves.reward[0, 0, 0]) < 0.6
    assert float(curves.reward[0, 0, -1]) > 0.97


@pytest.mark.parametrize("clamp_p", [0.0, 0.99])
def test_training_with_classes_is_training_with_all_actions_written_out(clamp_p: float) -> None:
    """Where nothing is ever paid, only the bonus moves the policy, and no chance is involved."""
    nothing_paid = Start(first_rank=90_001, last_rank=ACTIONS)
    found = train(1, [Method(0.1, clamp_p)], [0], steps=20, every=1, start=nothing_paid).entropy[0, 0]
    made = problem(1, seed=0, start=nothing_paid)
    actions = made.logits[0].double().repeat_interleave(made.size[0].long())
    for step in range(21):
        actions.requires_grad_()
        assert float(found[step]) == pytest.approx(float(full_entropy(actions).detach()), rel=1e-3)
        bonus = clamped_entropy(actions, clamp_p) if clamp_p else full_entropy(actions)
        actions = (actions + 10.0 * 0.1 * torch.autograd.grad(bonus, actions)[0]).detach()
    assert found[-1] > found[0] + 0.1


def test_a_seed_says_everything_and_all_methods_share_its_problem() -> None:
    def short(seeds):
        return train(2, [Method(), Method(0.1, 0.99)], seeds, steps=20, every=10, start=Start())

    first, again, other = short([0, 1]), short([0, 1]), short([5, 6])
    assert torch.equal(first.reward, again.reward)
    assert torch.equal(first.entropy, again.entropy)
    assert first.steps.tolist() == [0, 10, 20]
    assert not torch.equal(first.reward, other.reward)
    assert torch.equal(first.reward[0, :, 0], first.reward[1, :, 0])
    assert first.reward[0, 0, 0] != first.reward[0, 1, 0]


def test_each_run_has_a_controller_of_its_own_that_sees_its_entropy() -> None:
    band = BandController(init=0.1, low=0.2, high=0.5, lr=0.01, warmup_steps=1, min=0.0, max=0.3)
    coefficients = _Coefficients([Method(0.12), Method(0.1, 0.99, controller=band)], seeds=2)
    for step in (1, 2):
        coefficients.update(torch.tensor([[9.0, 0.0], [2.5, 0.1]]), step)
    rows = coefficients.rows((2, 2, POSITIONS)).view(2, 2, POSITIONS)
    expected = torch.tensor([[0.12, 0.12], [0.1 - 2 * 0.01 * 2.0, 0.1 + 2 * 0.01 * 0.1]])
    torch.testing.assert_close(rows, expected.unsqueeze(-1).expand_as(rows))


def test_interval_is_students() -> None:
    mean, half = interval(torch.tensor([[1.0], [2.0], [3.0]]).numpy())
    assert mean[0] == 2
    assert half[0] == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


@pytest.fixture(scope="module")
def results():
    return json.loads((FOLDER / "results.json").read_text())


def test_the_page_has_the_tables_of_the_results_file(results, tmp_path: Path) -> None:
    page = (FOLDER / "README.md").read_text()
    assert page.split(BEGIN)[1].split(END)[0].strip() == tables(results).strip()
    (tmp_path / "README.md").write_text(page.replace("| .", "| 0."))
    put_into_readme(tmp_path / "README.md", results)
    assert (tmp_path / "README.md").read_text() == page


def test_a_page_without_a_place_for_tables_is_named(results, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"README\.md: no place"):
        put_into_readme(tmp_path / "README.md", results)


def test_the_results_file_is_of_the_settings_in_the_code(results) -> None:
    made = results["made"]
    expected = {(job.part, str(job.optimal)) for job in jobs(made["optimal"], made["steps"], len(made["seeds"]))}
    found = {(part, optimal) for part, by_optimal in results.items() if part != "made" for optimal in by_optimal}
    assert found == expected
    for lines in results["curves"].values():
        assert set(lines) == set(METHODS) == set(LINES)
        assert all(len(line["reward"]) == len(made["seeds"]) for line in lines.values())


def test_the_picture_has_a_column_for_each_number_of_optimal_actions(results) -> None:
    titles = [axes.get_title() for axes in figure(results).get_axes() if axes.get_title()]
    assert titles == ["15 optimal actions", "10 optimal actions", "5 optimal actions", "1 optimal action"]


@pytest.mark.parametrize("option", ["--steps", "--seeds", "--optimal", "--processes"])
def test_an_option_out_of_range_is_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main([option, "0"])
    assert f"{option}: 0 is not allowed: must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_with_one_optimal_action_the_full_bonus_fails_and_the_clamped_one_works() -> None:
    assert GROUP == 16
    curves = train(1, list(METHODS.values()), [7], steps=4000, every=4000, start=Start())
    final = dict(zip(METHODS, curves.reward[:, 0, -1].tolist(), strict=True))
    assert final["none"] < 0.6
    assert final["full"] < 0.6
    assert final["clamped"] > 0.9
    assert final["AEnt"] > 0.9


@pytest.mark.slow
def test_without_a_bonus_it_is_the_shared_advantage_that_makes_the_policy_collapse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reward() -> float:
        return float(train(15, [Method()], [7], steps=2000, every=2000, start=Start()).reward[0, 0, -1])

    shared = reward()
    monkeypatch.setattr("examples.synthetic_mdp.train.advantages", lambda rewards: rewards - rewards.mean(-1, True))
    assert shared < 0.9
    assert reward() > 0.97


@pytest.mark.slow
def test_the_command_writes_results_picture_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    script.main(["--optimal", "2", "1", "--steps", "20", "--seeds", "2", "--processes", "2", "--output", str(tmp_path)])
    saved = json.loads((tmp_path / "results.json").read_text())
    assert tables(saved) in (tmp_path / "README.md").read_text()
    assert (tmp_path / "reward.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"{len(jobs([2, 1], 20, 2))} of" in printed
    assert tables(saved) in printed
