"""Run the steps of a Dockerfile in a folder that holds an empty Debian, where there is no Docker; needs root.

    debootstrap --include=ca-certificates,python3,python3-venv,python3-dev bookworm /tmp/root
    python docker/check.py docker/Dockerfile.cpu /tmp/root make train ARGS=trainer.total_training_steps=2

Each RUN is run as written, in a shell of the image's user, with what ARG and ENV have set by then; COPY takes the files
of this commit; the command at the end replaces CMD. FROM, LABEL and HEALTHCHECK are left out. The steps see this
machine's /proc, /dev and /sys, and end with this process.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from string import Template


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined]


def copy(arguments: list[str], root: Path, folder: str, user: str) -> None:
    """Copy tracked files; the last argument is where to."""
    *sources, target = [word for word in arguments if not word.startswith("--")]
    place = root / os.path.join(folder, target).lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    names = subprocess.run(["git", "ls-files", "--", *sources], check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        # A single file goes into the target; a folder's files keep their paths.
        to = place / (name if sources == ["."] else Path(name).name)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, to, follow_symlinks=False)
    if any(word.startswith("--chown") for word in arguments):
        run(root, "0", "/", {}, f"chown -hR {user}:{user} {shlex.quote(str(Path('/') / place.relative_to(root)))}")


def run(root: Path, user: str, folder: str, environment: dict[str, str], command: str) -> None:
    """Run a shell command inside, and say how long it took."""
    started = time.monotonic()
    base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    words = ["chroot", f"--userspec={user}:{user}", str(root), "sh", "-c", f"cd {shlex.quote(folder)} && {command}"]
    subprocess.run(words, check=True, env=base | environment)
    print(f"-- {time.monotonic() - started:.0f} s as user {user}: {command[:100]}", flush=True)


def main() -> None:
    """Go through the Dockerfile in a mount and process namespace of our own, then run the command."""
    dockerfile, root, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    if os.getpid() != 1:
        mounts = "; ".join(f"mount --rbind /{name} {shlex.quote(str(root))}/{name}" for name in ("proc", "dev", "sys"))
        inside = f"{mounts}; exec {shlex.join([sys.executable, *sys.argv])}"
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp(namespaces[0], [*namespaces, "sh", "-ec", inside])
    user, folder, environment = "0", "/", {}
    for keyword, text in instructions(dockerfile):
        if keyword == "RUN":
            run(root, user, folder, environment, text)
            continue
        filled = Template(text).safe_substitute(environment)
        if keyword in ("ARG", "ENV"):
            environment |= dict(word.split("=", 1) for word in shlex.split(filled))
        elif keyword == "USER":
            user = filled
        elif keyword == "WORKDIR":
            folder = filled
        elif keyword == "COPY":
            copy(shlex.split(filled), root, folder, user)
    if command:
        run(root, user, folder, environment, shlex.join(command))


if __name__ == "__main__":
    main()
