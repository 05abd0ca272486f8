"""Reading the `entropy_control` block."""

import pytest
import torch

from aent_verl.methods.parsing import parse_functional
from tests.unit.core.test_custom import tsallis

KEY = "entropy_control.functional"


def test_a_path_is_imported_and_given_its_arguments() -> None:
    parsed = parse_functional({"name": "tests.unit.core.test_custom:tsallis", "arguments": {"q": 2}})
    assert str(parsed) == "tests.unit.core.test_custom:tsallis(q=2)"
    assert parsed.function is not None
    logits = torch.randn(7, 11, dtype=torch.float64)
    torch.testing.assert_close(parsed.function(logits), tsallis(logits, 2))


def test_ours_are_no_functions() -> None:
    assert parse_functional({"name": "full"}).function is None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nowhere.at_all:entropy", {}, "No module named"),
        ("tests.unit.core.test_custom:nothing", {}, "no attribute 'nothing'"),
        ("tests.unit.core.test_custom:tsallis", {}, "missing a required argument: 'q'"),
        ("tests.unit.core.test_custom:tsallis", {"p": 1}, "missing a required argument|unexpected keyword"),
        ("tests.unit.methods.test_parsing:KEY", {}, "is not a callable object"),
        ("renyi", {}, "must be one of full, clamped, nucleus, the package.module:name of another"),
    ],
)
def test_what_is_not_a_function_is_refused(name: str, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_functional({"name": name, "arguments": arguments})
    assert f"{KEY}.name={name!r} is not allowed" in str(error.value)
