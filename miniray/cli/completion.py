"""Print a script that completes miniray's commands and options in bash, zsh or fish.

It is made from the parser itself, so it offers what --help explains.
"""

import argparse
import shlex
from typing import NamedTuple

EXAMPLES = """\
examples:
  eval "$(miniray completion bash)"     put this into ~/.bashrc
  eval "$(miniray completion zsh)"      put this into ~/.zshrc, after compinit
  miniray completion fish | source      put this into ~/.config/fish/config.fish
"""
# What a value is, told by the name that --help gives it.
VALUES = {"FILE": "files", "SCRIPT": "files", "ARGUMENTS": "files", "DIR": "folders"}


class Option(NamedTuple):
    """One option, or one argument by its place, which has no names."""

    names: list[str]
    help: str
    value: str  # its name in --help; empty if there is none
    kind: str  # "files", "folders", or the words to choose from


class Command(NamedTuple):
    """One command; that without a name is the program itself."""

    name: str
    help: str
    options: list[Option]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=sorted(SHELLS), help="print the script for this one")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    print(SHELLS[options.shell](list_commands(options.parser)))
    return 0


def list_commands(parser: argparse.ArgumentParser) -> list[Command]:
    """Return the program itself and its commands, with what may follow each."""
    found = [Command("", "", _list_options(parser))]
    for action in parser._actions:  # argparse has no other way to ask
        if isinstance(action.choices, dict):  # commands by name
            helps = {one.dest: one.help or "" for one in action._choices_actions}  # type: ignore[attr-defined]  # of this kind of action
            for name, command in action.choices.items():
                found.append(Command(name, helps.get(name, ""), _list_options(command)))
    return found


def _list_options(parser: argparse.ArgumentParser) -> list[Option]:
    options = []
    for action in parser._actions:
        if isinstance(action.choices, dict) or action.help == argparse.SUPPRESS:
            continue
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        kind = " ".join(map(str, action.choices or ())) or VALUES.get(value, "")
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        has_value = action.nargs != 0
        options.append(Option(list(action.option_strings), text, value * has_value, kind))
    return options


BASH = r"""_miniray() {
    local IFS=$' \t\n' word=${COMP_WORDS[COMP_CWORD]} command='' offered='' places=''
    ((COMP_CWORD > 1)) && command=${COMP_WORDS[1]}
    case $command in
        @commands@
    esac
    case "$command ${COMP_WORDS[COMP_CWORD - 1]}" in
        @values@
    esac
    case " $offered " in
        *' files '*) places=-f ;;
        *' folders '*) places=-d ;;
    esac
    offered=${offered//files/}
    COMPREPLY=($(compgen -W "${offered//folders/}" -- "$word"))
    if [[ -n $places && $word != -* ]]; then
        compopt -o filenames 2>/dev/null
        IFS=$'\n'
        COMPREPLY+=($(compgen $places -- "$word"))
    fi
}
complete -F _miniray miniray"""


def for_bash(commands: list[Command]) -> str:
    """Return the script for bash."""
    offers, values = [], []
    for name, _, options in commands:
        offered = [one for option in options for one in option.names]
        offered += [option.kind for option in options if not option.names]
        offered += [] if name else [one.name for one in commands]
        offers.append(f"{shlex.quote(name)}) offered={shlex.quote(' '.join(offered))} ;;")
        for option in options:
            if option.names and option.value:
                before = "|".join(shlex.quote(f"{name} {one}") for one in option.names)
                values.append(f"{before}) offered={shlex.quote(option.kind)} ;;")
    return _fill(BASH, commands=offers, values=values)


ZSH = """#compdef miniray
_miniray() {
    local -a names=(
        @names@
    )
    local command=''
    ((CURRENT > 2)) && { command=$words[2]; shift words; ((CURRENT--)) }
    case $command in
        @commands@
    esac
}
compdef _miniray miniray"""


def for_zsh(commands: list[Command]) -> str:
    """Return the script for zsh."""
    names = [shlex.quote(f"{one.name}:{one.help}") for one in commands if one.name]
    cases = []
    for name, _, options in commands:
        specs = [spec for option in options for spec in _zsh_specs(option)]
        describe = "" if name else "_describe command names; "
        cases.append(f"{shlex.quote(name)}) {describe}_arguments {' '.join(specs)} ;;")
    return _fill(ZSH, names=names, commands=cases)


def _fill(script: str, **lines: list[str]) -> str:
    """Put lines where a script has @name@, each on a line of its own."""
    for name, some in lines.items():
        script = script.replace(f"@{name}@", "\n        ".join(some))
    return script


def _zsh_specs(option: Option) -> list[str]:
    actions = {"files": "_files", "folders": "_files -/", "": " "}
    action = actions.get(option.kind, f"({option.kind})")
    text = option.help.translate({ord(one): f"\\{one}" for one in "[]:"})
    after = f":{option.value}:{action}" if option.value else ""
    if not option.names:
        return [shlex.quote(("*" if option.value == "ARGUMENTS" else "") + after)]
    others = f"({' '.join(option.names)})"
    return [shlex.quote(f"{others}{name}[{text}]{after}") for name in option.names]


def for_fish(commands: list[Command]) -> str:
    """Return the script for fish."""
    lines = ["complete -c miniray -f"]
    for name, text, options in commands:
        when = f"__fish_seen_subcommand_from {name}" if name else "__fish_use_subcommand"
        if name:
            lines.append(_fish_line("__fish_use_subcommand", ["-a", name, "-d", text]))
        for option in options:
            flags = []
            for one in option.names:
                flags += ["-l" if one.startswith("--") else "-s", one.lstrip("-")]
            if option.kind == "files":
                flags += ["-r", "-F"] if option.names else ["-F"]
            elif option.kind == "folders":
                flags += ["-x", "-a", "(__fish_complete_directories)"]
            elif option.kind:
                flags += ["-x", "-a", option.kind]
            elif option.value:
                flags += ["-x"]
            if option.names or option.kind:
                lines.append(_fish_line(when, [*flags, "-d", option.help]))
    return "\n".join(lines)


def _fish_line(when: str, flags: list[str]) -> str:
    quoted = ["'" + one.replace("\\", "\\\\").replace("'", "\\'") + "'" for one in [when, *flags]]
    return f"complete -c miniray -n {' '.join(quoted)}"


SHELLS = {"bash": for_bash, "zsh": for_zsh, "fish": for_fish}
