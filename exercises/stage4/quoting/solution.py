"""Start a program on another machine, with exactly the arguments that were meant."""

import shlex


def ssh_command(host: str, argv: list[str], environment: dict[str, str]) -> list[str]:
    """Return the command that runs `argv` on a host, with these environment variables set.

    What ssh is given after the host it joins with spaces, and the login shell there takes the
    result apart. ssh hands no environment over; the program `env` sets it: env NAME=VALUE COMMAND.
    Raises ValueError for a host that ssh would take for an option.
    """
    # begin yours
    if host.startswith("-"):
        raise ValueError(f"no host: {host!r} begins with a dash")
    settings = [f"{name}={value}" for name, value in environment.items()]
    return ["ssh", host, shlex.join(["env", *settings, *argv])]
    # end yours
