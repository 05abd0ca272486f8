"""docker/: what an image promises, read from its Dockerfile; the steps themselves run with `make docker-check`."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("docker_check", ROOT / "docker" / "check.py")
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_an_image(name: str):
    steps = check.instructions(ROOT / "docker" / name)
    keywords = [keyword for keyword, _ in steps]
    assert {"HEALTHCHECK", "LABEL", "CMD"} <= set(keywords)
    # Not root, and by number, which Kubernetes asks for with runAsNonRoot.
    assert [text for keyword, text in steps if keyword == "USER"][-1] == "${UID}"
    (uid,) = (text for keyword, text in steps if keyword == "ARG" and text.startswith("UID="))
    assert int(uid.removeprefix("UID=")) > 0
    # A change of code leaves what was installed from the registries as it is.
    code = next(i for i, (keyword, text) in enumerate(steps) if keyword == "COPY" and " . " in f" {text} ")
    heavy = [i for i, (_, text) in enumerate(steps) if "make install" in text or "transformers==" in text]
    assert len(heavy) == 1
    assert heavy[0] < code
    # The commit changes with every build: nothing is built after it.
    assert "RUN" not in keywords[keywords.index("LABEL") :]
    assert [text for keyword, text in steps[:-3] if keyword == "ARG" and "REVISION" in text] == []


def test_keys_stay_out_of_an_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", "**/.env", "**/.env.*", "**/.netrc", "**/*.pem", "**/*.key"} <= set(ignored)
