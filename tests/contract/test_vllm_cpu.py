import ast
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from aent_verl.platforms import vllm_cpu, vllm_plugin

NAME = "dispatch_cpu_unquantized_gemm"


@pytest.fixture(scope="module")
def utils():
    """vLLM's module with the function that we replace."""
    pytest.importorskip("vllm")
    vllm_cpu.provide_vllm_distribution()
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM is not on its CPU backend here")
    from vllm.model_executor.layers import utils

    return utils


@pytest.fixture
def stock(monkeypatch, utils):
    """The same module with vLLM's own function in place, put back afterwards."""
    present = getattr(utils, NAME)
    monkeypatch.setattr(utils, NAME, present.__wrapped__ if getattr(present, vllm_cpu._MARK, False) else present)
    return utils


def test_the_function_that_we_replace_is_the_one_that_we_know(stock):
    vllm_cpu.keep_weight(getattr(stock, NAME))


def test_nobody_in_vllm_holds_the_function_under_a_name_of_its_own(stock):
    """A `from utils import ...` at the top of a module would keep using the original."""
    import vllm

    users = set()
    for path in Path(vllm.__file__).parent.rglob("*.py"):
        source = path.read_text()
        if NAME not in source:
            continue
        for function in ast.walk(tree := ast.parse(source)):
            if isinstance(function, ast.FunctionDef) and imports(ast.walk(function)):
                users.add(path.name)
        assert not imports(tree.body), f"{path} imports {NAME} once and for all"
    assert users == {"linear.py", "vocab_parallel_embedding.py"}


def imports(nodes) -> bool:
    return any(isinstance(node, ast.ImportFrom) and NAME in {alias.name for alias in node.names} for node in nodes)


def test_vllm_is_told_of_the_plugin():
    plugins = [p for p in importlib.metadata.entry_points(group="vllm.general_plugins") if p.name == "aent_verl"]
    assert [plugin.value for plugin in plugins] == ["aent_verl.platforms.vllm_plugin:register"]
    assert plugins[0].load() is vllm_plugin.register


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda layer: None, r"found \(layer\)"),
        (lambda layer, remove_weight, pack: None, r"found \(layer, remove_weight, pack\)"),
        (lambda remove_weight, layer: None, r"found \(remove_weight, layer\)"),
        (None, "found no such function"),
    ],
)
def test_another_function_is_not_replaced(monkeypatch, stock, function, found):
    import vllm

    monkeypatch.setattr(stock, NAME, function)
    with pytest.raises(RuntimeError, match=rf"expected {NAME}\(layer, remove_weight\).*{found}") as raised:
        vllm_cpu.register()
    assert f"vLLM {vllm.__version__}" in str(raised.value)
    assert getattr(stock, NAME) is function


def test_register_twice_replaces_and_says_so_once(stock, capsys):
    vllm_cpu.register()
    wrapper = getattr(stock, NAME)
    vllm_cpu.register()
    assert getattr(stock, NAME) is wrapper
    assert sum(NAME in line for line in capsys.readouterr().err.splitlines()) == 1


def test_register_leaves_other_platforms_alone(monkeypatch, stock):
    import vllm.platforms

    class Accelerator:
        def is_cpu(self):
            return False

    original = getattr(stock, NAME)
    monkeypatch.setattr(vllm.platforms, "_current_platform", Accelerator())
    vllm_cpu.register()
    assert getattr(stock, NAME) is original


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_weights_stay_and_can_be_updated(stock, dtype, with_bias):
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    vllm_cpu.register()
    torch.manual_seed(0)
    layer, method = (
        torch.nn.Linear(64, 96, bias=with_bias, dtype=dtype).requires_grad_(False),
        UnquantizedLinearMethod(),
    )
    inputs = torch.randn(5, 64, dtype=dtype)
    for _ in range(3):
        parameter, new = layer.weight, torch.randn(96, 64, dtype=dtype)
        parameter.copy_(new)  # what a weight loader does
        method.process_weights_after_loading(layer)
        assert layer.weight is parameter
        assert torch.equal(layer.weight, new)
        expected = torch.nn.functional.linear(inputs.double(), new.double(), layer.bias.double() if with_bias else None)
        product = method.apply(layer, inputs, layer.bias)
        torch.testing.assert_close(product, expected.to(dtype), rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 0.1)


def test_stock_vllm_drops_the_weight(stock):
    """Why all this is needed. If this fails, vLLM keeps weights by itself and our replacement can go."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    layer = torch.nn.Linear(64, 96, dtype=torch.bfloat16).requires_grad_(False)
    UnquantizedLinearMethod().process_weights_after_loading(layer)
    if not stock.ops._supports_onednn:
        pytest.skip("this build of vLLM packs nothing")
    assert layer.weight.numel() == 0


def install(folder: Path, name: str, version: str) -> None:
    """Writes an installed distribution with one module `vllm`, one requirement and one entry point."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = Message()
    for key, value in (("Metadata-Version", "2.4"), ("Name", name), ("Version", version), ("Requires-Dist", "torch")):
        metadata[key] = value
    metadata.set_payload("A description: with a colon.\n")
    (info / "METADATA").write_text(metadata.as_string())
    (info / "top_level.txt").write_text("vllm\n")
    (info / "RECORD").write_text("vllm/__init__.py,,\n")
    (info / "entry_points.txt").write_text("[some.group]\nthing = vllm:thing\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty place that is all of `sys.path`, without a finder of ours."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, vllm_cpu.VllmCpuFinder)])
    yield tmp_path
    importlib.invalidate_caches()


def test_vllm_cpu_answers_to_the_name_vllm(site):
    install(site, "vllm-cpu", "9.9.1")
    vllm_cpu.provide_vllm_distribution()
    vllm_cpu.provide_vllm_distribution()
    assert sum(isinstance(finder, vllm_cpu.VllmCpuFinder) for finder in sys.meta_path) == 1
    assert importlib.metadata.version("vllm") == "9.9.1+cpu"
    assert importlib.metadata.version("vllm-cpu") == "9.9.1"
    assert importlib.metadata.metadata("vllm")["Name"] == "vllm"
    assert importlib.metadata.metadata("vllm").get_payload() == "A description: with a colon.\n"
    assert importlib.metadata.requires("vllm") == ["torch"]
    assert [str(file) for file in importlib.metadata.files("vllm")] == ["vllm/__init__.py"]
    assert importlib.metadata.files("vllm")[0].locate() == site / "vllm/__init__.py"


def test_nothing_is_listed_twice(site):
    install(site, "vllm-cpu", "9.9.1")
    vllm_cpu.provide_vllm_distribution()
    assert [found.name for found in importlib.metadata.distributions()] == ["vllm-cpu"]
    assert len(importlib.metadata.entry_points(group="some.group")) == 1
    assert importlib.metadata.packages_distributions() == {"vllm": ["vllm-cpu"]}
    with pytest.raises(PackageNotFoundError):
        importlib.metadata.version("something-else")


def test_a_local_version_is_kept(site):
    install(site, "vllm-cpu", "9.9.1+cpu")
    vllm_cpu.provide_vllm_distribution()
    assert importlib.metadata.version("vllm") == "9.9.1+cpu"


def test_a_real_vllm_is_left_alone(site):
    install(site, "vllm", "0.24.0")
    install(site, "vllm-cpu", "9.9.1")
    vllm_cpu.provide_vllm_distribution()
    assert not any(isinstance(finder, vllm_cpu.VllmCpuFinder) for finder in sys.meta_path)
    assert importlib.metadata.version("vllm") == "0.24.0"


def test_a_real_vllm_that_comes_later_wins(site):
    install(site, "vllm-cpu", "9.9.1")
    vllm_cpu.provide_vllm_distribution()
    install(site / "later", "vllm", "0.24.0")
    sys.path.append(str(site / "later"))
    assert importlib.metadata.version("vllm") == "0.24.0"


def test_without_any_vllm_nothing_is_provided(site):
    vllm_cpu.provide_vllm_distribution()
    with pytest.raises(PackageNotFoundError):
        importlib.metadata.version("vllm")


@pytest.mark.slow
def test_verl_and_vllm_accept_the_name(utils):
    from verl.third_party import vllm as third_party
    from vllm.platforms import cpu_platform_plugin, vllm_version_matches_substr
    from vllm.utils.import_utils import get_vllm_optional_dependencies

    assert third_party.vllm_version == importlib.metadata.version("vllm")
    assert vllm_version_matches_substr("cpu")
    assert "Cpu" in cpu_platform_plugin()
    assert get_vllm_optional_dependencies()


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora.rank=8"])
def test_verl_finds_vllm_although_it_was_imported_before_the_platform_was_chosen(lora: str):
    """With LoRA verl's own check of the config imports vLLM; composing has imported verl by then."""
    pytest.importorskip("vllm")
    code = f"""
import sys
from hydra import compose, initialize_config_module
from aent_verl.launch import environment
with initialize_config_module("aent_verl._config", version_base="1.3"):
    cfg = compose("aent_trainer", overrides=["experiment=cpu_arithmetic", "{lora}"])
assert "verl" in sys.modules
environment.choose_platform(cfg)
from verl.utils.config import validate_config
validate_config(config=cfg, use_reference_policy=False, use_critic=False)
"""
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
