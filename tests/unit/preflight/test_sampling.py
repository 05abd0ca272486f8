"""Sampling settings: what verl passes on, and what the rollout's distribution means for the policy that trains."""

import inspect

import pytest
import torch
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from aent_verl.core.sampled import Truncation
from aent_verl.preflight import sampling
from tests.unit.preflight.finding import config, findings, stops_and_warns

ROLLOUT, CORRECTION, ENGINE = sampling.ROLLOUT, sampling.CORRECTION, sampling.ENGINE
TOP_P, TOP_K, MODE = f"{ROLLOUT}.top_p", f"{ROLLOUT}.top_k", f"{ROLLOUT}.logprobs_mode"
BYPASS = f"{CORRECTION}.bypass_mode=true"


@pytest.mark.parametrize(
    ("overrides", "stop", "warn"),
    [
        ((), set(), set()),
        ((f"{ROLLOUT}.temperature=0.7",), set(), set()),
        ((f"{ROLLOUT}.temperature=0.7", BYPASS), set(), set()),
        ((f"{TOP_P}=0.9",), set(), {TOP_P}),
        ((f"{TOP_K}=50",), set(), {TOP_K}),
        ((f"{TOP_K}=50", f"{TOP_P}=0.9"), set(), {TOP_K, TOP_P}),
        ((f"{TOP_K}=0",), set(), set()),
        ((f"{TOP_P}=0.9", BYPASS), {TOP_P}, set()),
        ((f"{TOP_K}=50", BYPASS), {TOP_K}, set()),
        ((f"{TOP_P}=0.9", f"{CORRECTION}.rollout_is=sequence"), {TOP_P}, set()),
        ((f"{TOP_P}=0.9", f"{CORRECTION}.rollout_rs=token_k1,seq_mean_k3"), {TOP_P}, set()),
        ((f"{TOP_P}=0.9", f"{CORRECTION}.rollout_is=token"), set(), {TOP_P}),
        # Log-probs of the whole distribution: the ratio is 1 at equal weights.
        ((f"{TOP_P}=0.9", BYPASS, f"{MODE}=raw_logprobs"), set(), {TOP_P}),
        ((BYPASS, f"{ROLLOUT}.temperature=0.7", f"{MODE}=raw_logprobs"), {MODE}, set()),
        ((f"{ROLLOUT}.temperature=0.7", f"{MODE}=raw_logprobs"), set(), {MODE}),
        ((f"{CORRECTION}.rollout_is=token", f"{MODE}=processed_logits"), {MODE}, set()),
        (
            (BYPASS, f"{ROLLOUT}.temperature=0.7", f"{ENGINE}.logprobs_mode=raw_logprobs"),
            {f"{ENGINE}.logprobs_mode"},
            set(),
        ),
        ((f"{ENGINE}.logits_processors=[mine]",), set(), {f"{ENGINE}.logits_processors"}),
        ((f"{ENGINE}.logits_processors=[mine]", BYPASS), {f"{ENGINE}.logits_processors"}, set()),
        (
            (f"{ENGINE}.override_generation_config={{top_p: 0.9, eos_token_id: 3}}",),
            set(),
            {f"{ENGINE}.override_generation_config.top_p"},
        ),
        ((f"{ROLLOUT}.temperature=0",), {f"{ROLLOUT}.temperature"}, set()),
        ((f"{TOP_K}=1",), {TOP_K}, set()),
        ((f"{TOP_P}=1.5",), {TOP_P}, set()),
        ((f"{ROLLOUT}.repetition_penalty=1.1",), {f"{ROLLOUT}.repetition_penalty"}, set()),
        ((f"{ROLLOUT}.ignore_eos=true",), set(), {f"{ROLLOUT}.ignore_eos"}),
        ((f"{ROLLOUT}.val_kwargs.do_sample=true",), set(), {f"{ROLLOUT}.val_kwargs.temperature"}),
        ((f"{ROLLOUT}.val_kwargs.n=4",), set(), {f"{ROLLOUT}.val_kwargs.temperature"}),
        ((f"{ROLLOUT}.val_kwargs.temperature=0.6",), set(), {f"{ROLLOUT}.val_kwargs.do_sample"}),
        ((f"{ROLLOUT}.val_kwargs.temperature=0.6", f"{ROLLOUT}.val_kwargs.do_sample=true"), set(), set()),
    ],
)
def test_what_stops_and_what_warns(overrides, stop, warn):
    assert stops_and_warns(sampling.check, config(*overrides)) == (stop, warn)


@pytest.mark.parametrize("method", ["steer", "clip_cov", "kl_cov"])
def test_methods_that_take_the_samples_for_the_policys(method):
    text = str(findings(sampling.check, config(f"entropy_control={method}", f"{TOP_P}=0.9"))[TOP_P])
    assert method in text
    assert "takes the sampled tokens to be drawn from the whole policy" in text
    assert "takes the sampled" not in str(findings(sampling.check, config(f"{TOP_P}=0.9"))[TOP_P])


def test_where_the_second_entropy_is_reported_and_where_it_cannot_be():
    assert "aent/entropy_sampled is the entropy" in str(findings(sampling.check, config(f"{TOP_P}=0.9"))[TOP_P])
    fused = config(f"{TOP_P}=0.9", "actor_rollout_ref.model.use_fused_kernels=true")
    assert "not measured with" in str(findings(sampling.check, fused)[TOP_P])


def test_verl_passes_on_three_sampling_parameters():
    """What the checks stand on; verl names no other, and overrides a repetition penalty."""
    source = inspect.getsource(AgentLoopWorkerTQ.generate_sequences)
    assert "repetition_penalty=1.0" in source
    for name in ("temperature", "top_p", "top_k"):
        assert f"{name}=config.{name}" in source
        assert f'sampling_params["{name}"] = config.val_kwargs.{name}' in source
    assert "do_sample" not in source


def test_at_equal_weights_the_ratio_to_a_truncated_rollout_is_the_mass_that_is_kept():
    """Why the rollout's log-probs are refused: drawn from the truncated distribution, at the same weights."""
    logits = 2.0 * torch.randn(64, 200, generator=torch.Generator().manual_seed(0)).double()
    policy = logits.softmax(-1)
    ordered, order = policy.sort(-1, descending=True)
    kept = (ordered.cumsum(-1) - ordered) < 0.9
    sampled = torch.zeros_like(policy).scatter(-1, order, ordered * kept)
    mass = sampled.sum(-1, keepdim=True)
    sampled = sampled / mass
    tokens = torch.multinomial(sampled, 100, replacement=True, generator=torch.Generator().manual_seed(1))
    ratio = policy.gather(-1, tokens) / sampled.gather(-1, tokens)
    torch.testing.assert_close(ratio, mass.expand_as(ratio))
    assert float(ratio.min()) >= 0.9
    assert float(ratio.mean()) == pytest.approx(0.905, abs=0.005)
    assert float(ratio.mean(0).log().sum().exp()) < 1e-3  # over a response of 100 tokens
    measured = Truncation(top_p=0.9).entropy(logits)
    torch.testing.assert_close(measured, torch.special.entr(sampled).sum(-1))
    assert bool((measured < torch.special.entr(policy).sum(-1)).all())
