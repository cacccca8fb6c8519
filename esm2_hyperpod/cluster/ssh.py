"""An SSH host entry that goes through Session Manager, so that VS Code, scp, rsync and tunnels work.

No port is opened: ssh talks through `aws ssm start-session` with AWS's document AWS-StartSSHSession (AWS's
page "Allow and control permissions for SSH connections through Session Manager"). The user's public key goes
to the node's `ubuntu`, the user whose folder the numbered scripts use.
"""

import re
import shlex
from pathlib import Path

from esm2_hyperpod.errors import UserError

USER = "ubuntu"
KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
_PUBLIC_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/]+=*( [^\n]*)?")


def is_public_key(text: str) -> bool:
    """Whether a text is one line of an SSH public key."""
    return _PUBLIC_KEY.fullmatch(text.strip()) is not None


def find_key(asked: Path | None) -> Path:
    """The user's public key: `asked`, or the usual one. Raises `UserError` if there is none."""
    folder = Path.home() / ".ssh"
    for path in [asked] if asked else [folder / name for name in KEYS]:
        if path.is_file():
            if not is_public_key(path.read_text(encoding="utf-8", errors="replace")):
                raise UserError(f"{path}: is not an SSH public key; give the file that ends in .pub")
            return path
    if asked:
        raise UserError(f"{asked}: no such file; make a key with: ssh-keygen -t ed25519")
    raise UserError(
        f"{folder}: has no {', '.join(KEYS)}; make a key with: ssh-keygen -t ed25519, or give --key"
    )


def host_entry(name: str, instance_id: str, session: list[str], key: Path) -> str:
    """The lines for ~/.ssh/config; `session` is the command that starts a session with the node.

    The node's own key is remembered by its instance id, since a replaced node has another.
    """
    proxy = [*session, "--document-name", "AWS-StartSSHSession", "--parameters", "portNumber=%p"]
    return (
        f"Host {name}\n"
        f"    User {USER}\n"
        f'    IdentityFile "{key.absolute().with_suffix("")}"\n'
        f"    HostKeyAlias {instance_id}\n"
        f"    StrictHostKeyChecking accept-new\n"
        f"    ProxyCommand {shlex.join(proxy)}\n"
    )


def authorize(key: Path) -> str:
    """The command that, run as root on the node, lets the owner of `key` log in; once, however often."""
    line = shlex.quote(key.read_text(encoding="utf-8").strip())
    script = (
        "umask 077; mkdir -p ~/.ssh; touch ~/.ssh/authorized_keys; "
        f"grep -qxF {line} ~/.ssh/authorized_keys || echo {line} >> ~/.ssh/authorized_keys; echo authorized"
    )
    return f"sudo -u {USER} -H bash -c {shlex.quote(script)}"


def uses(name: str) -> list[str]:
    """What the entry is good for: three commands."""
    return [
        f"code --remote ssh-remote+{name} /fsx/{USER}/esm2",
        f"rsync -av {name}:/fsx/{USER}/runs/ runs/",
        f"ssh -L 6006:localhost:6006 {name} /fsx/{USER}/esm2/.venv/bin/tensorboard --logdir /fsx/{USER}/runs",
    ]
