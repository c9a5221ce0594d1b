"""What `miniray doctor` runs on a node: it looks at all there is at the same time, and only tells.

It is sent as text to whatever Python is there, so that an old one can be named: it needs 3.6, and
nothing that is installed. What a fact means is not for it to say. On stdin come the settings, then
questions, each a line; when stdin ends it ends, and so does what it has started.
"""

import os
import sys

if __name__ == "__main__":
    # `python -c` looks for modules where it is started, and at home there may be a random.py.
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]

import contextlib
import errno
import fcntl
import functools
import glob
import json
import platform
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from typing import Any, Callable

Facts = Any  # what JSON can say

TRIED_BYTES = 1 << 14  # several packets of any size: some networks lose only the large ones
WRITTEN_BYTES = 1 << 20
ROOM_BYTES = 1 << 30  # a place with more will do
ACCEPTED_MAX = 10_000
USUAL_PORT = 29500  # where ranks meet if nobody has said where: torch's, and ours
TOO_LATE = -256  # no exit status and no signal
PYTHONS_MAX = 12
LISTEN, UP, LOOPBACK = "0A", 1, 8
GET_ADDRESS, GET_FLAGS = 0x8915, 0x8913  # Linux's SIOCGIFADDR and SIOCGIFFLAGS
# Where Pythons are besides on PATH; sh reads it as well.
PYTHON_PLACES = (
    *("~/.venv/bin", "~/venv/bin", "~/*/.venv/bin", "~/*/venv/bin", "~/mini*/bin"),
    *("~/mini*/envs/*/bin", "~/anaconda3/envs/*/bin", "/opt/*/bin", "/opt/*/envs/*/bin"),
    *("~/.pyenv/versions/*/bin", "/usr/local/bin", "/usr/bin"),
)
# Where people and systems set variables that a rank then finds.
STARTUP_FILES = (
    *("~/.bashrc", "~/.bash_profile", "~/.profile", "~/.zshenv", "~/.zshrc", "~/.cshrc"),
    *("~/.tcshrc", "~/.config/fish/config.fish", "~/.ssh/environment", "~/.pam_environment"),
    *("~/.nccl.conf", "/etc/nccl.conf", "/etc/environment", "/etc/profile", "/etc/bash.bashrc"),
    *("/etc/profile.d/*.sh", "/etc/zsh/zshenv"),
)
IMPORT = """
import importlib.util, json, os, sys, sysconfig
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        found = {"version": str(getattr(module, "__version__", "")), "file": module.__file__}
        if name == "torch":
            found["cuda"] = module.version.cuda or getattr(module.version, "hip", None)
            found["gpus"] = module.cuda.device_count() if module.cuda.is_available() else 0
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        found = {"error": "%s: %s" % (type(error).__name__, error), "missing": missing}
    found["has_pip"] = importlib.util.find_spec("pip") is not None
    mark = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    found["is_systems"] = sys.prefix == sys.base_prefix and os.path.exists(mark)
    print("\\n" + json.dumps([name, found]), flush=True)
"""
FIND = """
import importlib.util, json, sys
has = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps({"version": sys.version_info[:3], "has": has}))
"""


class Probe:
    """One look at this machine; what it finds goes to `tell`, as a name and facts."""

    def __init__(self, settings: "dict[str, Any]", tell: "Callable[[str, Facts], None]") -> None:
        self.settings, self._tell = settings, tell
        self.children: "list[Any]" = []

    def look_at_everything(self) -> None:
        """Look, each in a thread: a file system that hangs holds up nobody else."""
        for name, look in {
            "listening": self.listen,
            "system": look_at_system,
            "memory": look_at_memory,
            "network": look_at_network,
            "gpus": self.look_at_gpus,
            "modules": self.look_at_modules,
        }.items():
            self.start(name, look)
        for number, place in enumerate(self.settings["places"]):
            self.start("place%d" % number, functools.partial(look_at_place, **place))

    def start(self, name: str, look: "Callable[[], Facts]") -> None:
        """Look in a thread, and tell what was found, or what went wrong."""

        def run() -> None:
            try:
                facts = look()
            except Exception as error:  # of a machine that is ill, anything may be asked in vain
                facts = {"error": "%s: %s" % (type(error).__name__, error)}
            self._tell(name, facts)

        threading.Thread(target=run, daemon=True).start()

    def answer(self, question: "dict[str, Any]") -> None:
        """Answer one of the coordinator's questions."""
        if question["ask"] == "clock":
            self._tell("clock", {"time": time.time()})
        elif question["ask"] == "peers":
            self.start("peers", functools.partial(reach_peers, **question["about"]))

    def end(self) -> None:
        """End what it has started."""
        for child in self.children:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)

    def run(self, words: "list[str]", limit_s: float, **options: Any) -> "tuple[int, str, str]":
        """Run a program; return its status, or TOO_LATE, and what it printed."""
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            start_new_session=True,
            **options,
        )
        self.children.append(child)
        try:
            printed, said = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            printed, said = child.communicate(timeout=1)
            return TOO_LATE, printed, said
        return child.returncode, printed, said

    def listen(self) -> Facts:
        """Listen, at the port that is asked for or at any, and say who has it if it is taken."""
        port: int = self.settings["port"]
        facts: "dict[str, Any]" = {}
        try:
            listener = _listen_at(port)
        except OSError as error:
            facts = {"asked": port, "error": error.strerror, "holder": _find_holder(port)}
            listener = _listen_at(0)
        _start_thread(_welcome, listener, self.settings["token"])
        if self.settings["socket"]:
            facts["tunnel"] = _listen_at_path(self.settings["socket"], self.settings["token"])
        facts["port"] = listener.getsockname()[1]
        if port != USUAL_PORT:
            try:
                _listen_at(USUAL_PORT).close()
            except OSError:
                holder = _find_holder(USUAL_PORT)
                if holder["user"]:  # else it was another probe that has just looked
                    facts["usual_port"] = dict(holder, port=USUAL_PORT)
        return facts

    def look_at_modules(self) -> Facts:
        """Import each module in another process; if one is missing, look for it in other Pythons.

        That of what has taken too long may still come; its version is in its files.
        """
        names = self.settings["modules"]
        words = [sys.executable, "-c", IMPORT, *names]
        status, printed, said = self.run(words, self.settings["import_s"], cwd="/")
        lines = [line for line in printed.splitlines() if line.startswith("[")]
        found = dict(map(json.loads, lines))
        for name in names:
            if name not in found and status == TOO_LATE:
                found[name] = {"late": self.settings["import_s"], "version": _version_of(name)}
            elif name not in found:
                last = (said.strip().splitlines() or [""])[-1]
                found[name] = {"error": last, "status": status, "missing": False}
        is_old = sys.version_info[:2] < tuple(self.settings["python_min"])
        if is_old or any("error" in one for one in found.values()):
            found["pythons"] = self._look_at_pythons(names)
        return found

    def _look_at_pythons(self, names: "list[str]") -> Facts:
        places = os.environ.get("PATH", "").split(":") + list(PYTHON_PLACES)
        patterns = [place + name for place in places for name in ("/python3", "/python3.1?")]
        known = [self.settings["python"]]
        for pattern in patterns:
            known += glob.glob(os.path.expanduser(pattern))
        # Two names in one folder are often one Python; in another folder it may be another venv.
        each: "dict[tuple[str, str], str]" = {}
        for path in known:
            if path != sys.executable:
                each.setdefault((os.path.dirname(path), os.path.realpath(path)), path)
        paths = list(each.values())
        running = [
            subprocess.Popen(
                [path, "-c", FIND, *names],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
            for path in paths[:PYTHONS_MAX]
        ]
        self.children += running
        found, until = [], time.time() + 3
        for path, child in zip(paths, running):  # noqa: B905  # in 3.6 it is not strict
            with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
                printed, _ = child.communicate(timeout=max(0.0, until - time.time()))
                found.append(dict(json.loads(printed.decode()), path=path))
        return found

    def look_at_gpus(self) -> Facts:
        """Ask nvidia-smi for the GPUs, and for who uses them."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return {"gpus": [], "program": None, "device": os.path.exists("/dev/nvidia0")}
        about = "index,uuid,name,memory.total,memory.used,utilization.gpu,driver_version"
        style = "--format=csv,noheader,nounits"
        status, printed, said = self.run([program, "--query-gpu=" + about, style], 4)
        if status:
            return {"error": (said or printed).strip(), "status": status}
        gpus = _rows(printed, about)
        about = "gpu_uuid,pid,used_memory,process_name"
        status, printed, said = self.run([program, "--query-compute-apps=" + about, style], 4)
        uses = [] if status else _rows(printed, about)
        for use in uses:
            use.update(user=_owner_of(use["pid"]), command=_command_of(use["pid"]) or "")
        return {"gpus": gpus, "uses": uses, "program": program}


def look_at_system() -> Facts:
    """Tell of the machine, the user and the shell."""
    user = pwd.getpwuid(os.getuid())
    names = ["TMPDIR", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "PATH"]
    names += ["SSH_CONNECTION", "SSH_ORIGINAL_COMMAND"]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    firewalls = ("ufw", "firewall-cmd", "nft", "iptables")
    return {
        "hostname": socket.gethostname(),
        "machine": _name_machine(),
        "system": "%s %s %s" % (platform.system(), platform.release(), platform.machine()),
        "cpus": os.cpu_count(),
        "pid": os.getpid(),
        "user": user.pw_name,
        "shell": user.pw_shell,
        "python": sys.executable,
        "environment": {name: os.environ[name] for name in names if name in os.environ},
        "firewalls": [one for one in firewalls if shutil.which(one, path=path)],
    }


def _name_machine() -> str:
    """Return what this machine, or this container, has in common with no other one."""
    try:
        spaces = [os.readlink("/proc/self/ns/" + one) for one in ("net", "pid")]
        return " ".join([_read("/proc/sys/kernel/random/boot_id").strip(), *spaces])
    except OSError:
        return ""


def look_at_place(name: str, path: str, variable: str, below: str) -> Facts:
    """Tell of a folder, or of where it would be: what is free, and whether a file can be written.

    The file has no name, so nothing of it can stay.
    """
    path = os.path.join(os.path.expanduser(os.environ.get(variable) or path), below).rstrip("/")
    there = os.path.abspath(path)
    facts: "dict[str, Any]" = {"name": name, "path": path}
    while not os.path.isdir(there):
        if os.path.lexists(there):
            return dict(facts, there=there, problem="it is no folder")
        there = os.path.dirname(there)
    status, found = os.stat(there), os.statvfs(there)
    facts.update(
        there=there,
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_files=found.f_favail if found.f_files else None,
        is_read_only=bool(found.f_flag & os.ST_RDONLY),
        is_noexec=bool(found.f_flag & getattr(os, "ST_NOEXEC", 0)),
        is_open_to_others=status.st_uid not in (os.geteuid(), 0) or bool(status.st_mode & 2),
        is_sticky=bool(status.st_mode & 0o1000),
    )
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(os.urandom(1 << 12) * (WRITTEN_BYTES >> 12))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        facts["problem"] = error.strerror
        facts["errno"] = errno.errorcode.get(error.errno or 0, "")
    if "problem" in facts or facts["free_bytes"] < ROOM_BYTES:
        facts["elsewhere"] = _find_room()
    return facts


def _find_room() -> Facts:
    found = []
    for path in (os.path.expanduser("~"), "/scratch", "/local", "/data", "/mnt", "/var/tmp"):
        with contextlib.suppress(OSError):
            free = os.statvfs(path)
            if os.access(path, os.W_OK | os.X_OK) and free.f_bavail * free.f_frsize > ROOM_BYTES:
                found.append([path, free.f_bavail * free.f_frsize])
    return found


def look_at_memory() -> Facts:
    """Tell of the memory: the machine's, and what this session may have of it."""
    facts: "dict[str, Any]" = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            facts[name] = int(rest.split()[0]) * 1024
    facts = {"total": facts["MemTotal"], "available": facts["MemAvailable"], "limit": None}
    for line in _read("/proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = "/sys/fs/cgroup" + ("/memory" if kinds else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else (
            "memory.max", "memory.current"
        )  # fmt: skip
        while path:
            with contextlib.suppress(OSError, ValueError):
                limit, used = [int(_read("%s%s/%s" % (root, path, name))) for name in names]
                free = max(0, limit - used + _cached_in("%s%s/memory.stat" % (root, path)))
                facts["available"] = min(facts["available"], free)
                if limit < facts["total"]:
                    facts["limit"] = min(limit, facts["limit"] or limit)
            path = path.rpartition("/")[0] if path != "/" else ""
    return facts


def _cached_in(path: str) -> int:
    """Return how much of what a cgroup uses are files, and goes as soon as somebody needs room.

    The total, if there is one, is that of the groups within, too.
    """
    found = ["0"]
    with contextlib.suppress(OSError):
        found += re.findall(r"(?m)^(?:total_)?inactive_file (\d+)$", _read(path))
    return max(map(int, found))


def look_at_network() -> Facts:
    """Tell of the interfaces, and of the variables that name one, with the file that sets them."""
    variables = {
        name: os.environ[name]
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        if name in os.environ
    }
    places = []
    for pattern in STARTUP_FILES:
        for path in sorted(glob.glob(os.path.expanduser(pattern))):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                for number, line in enumerate(_read(path).splitlines(), 1):
                    if "SOCKET_IFNAME" in line and not line.lstrip().startswith("#"):
                        places.append("%s:%d" % (path, number))
    return {"interfaces": _list_interfaces(), "variables": variables, "set_in": places}


def _list_interfaces() -> Facts:
    found: "list[Any]" = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            one: "dict[str, Any]" = {"name": name, "addresses": []}
            one.update(is_up=True, is_loopback=name == "lo")
            query = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(asking.fileno(), GET_ADDRESS, query)
                one["addresses"].append(socket.inet_ntoa(answer[20:24]))
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking.fileno(), GET_FLAGS, query)
                flags = struct.unpack("H", answer[16:18])[0]
                one["is_up"], one["is_loopback"] = bool(flags & UP), bool(flags & LOOPBACK)
            found.append(one)
    with contextlib.suppress(OSError):  # macOS, or no IPv6
        for line in _read("/proc/net/if_inet6").splitlines():
            address, _, _, scope, _, name = line.split()
            for one in found:
                if one["name"] == name and scope != "20":  # link-local: of no use without its name
                    text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
                    one["addresses"].append(text)
    return found


def reach_peers(peers: Facts, limit_s: float) -> Facts:
    """Try to reach each peer at the first of its addresses, and where that fails at the others."""
    results: "dict[str, dict[str, Any]]" = {}

    noting = threading.Lock()

    def reach(peer: "dict[str, Any]") -> None:
        for address in peer["addresses"]:
            where = address, peer["port"], peer["token"]
            found = try_to_reach(*where, limit_s=limit_s)
            with noting:
                results[peer["name"]][address] = found
            if found["how"] == "ok":
                break

    threads = []
    for peer in peers:
        results[peer["name"]] = {}
        threads.append(threading.Thread(target=reach, args=(peer,), daemon=True))
        threads[-1].start()
    until = time.time() + 2 * limit_s
    for thread in threads:
        thread.join(max(0.0, until - time.time()))
    with noting:  # a thread may still be adding to it
        return json.loads(json.dumps(results))


def try_to_reach(address: str, port: int, token: str, limit_s: float) -> Facts:
    """Send many packets to who listens there and has the token, and take as many in.

    How it went is in "how": ok, timeout, refused, unreachable, stuck, stranger or error.
    """
    until = time.time() + limit_s
    facts: "dict[str, Any]" = {"how": "error", "source": _source_towards(address, port)}
    try:
        with contextlib.closing(_connect(address, port, limit_s)) as sock:
            facts["how"] = "stuck"
            sock.settimeout(max(0.1, until - time.time()))
            sock.sendall(b"." * TRIED_BYTES)
            answer = b""
            while len(answer) < TRIED_BYTES:
                sock.settimeout(max(0.1, until - time.time()))
                data = sock.recv(TRIED_BYTES)
                if not data:
                    break
                answer += data
            is_ours = len(answer) == TRIED_BYTES and answer.startswith(token.encode())
            facts["how"] = "ok" if is_ours else "stranger"
    except socket.timeout:  # in 3.6 that is no TimeoutError
        facts["how"] = "stuck" if facts["how"] == "stuck" else "timeout"
    except ConnectionRefusedError:
        facts["how"] = "refused"
    except OSError as error:
        facts["error"] = error.strerror or str(error)
        if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
            facts["how"] = "unreachable"
        elif facts["how"] == "stuck":
            facts["how"] = "stranger"  # it hung up
    return facts


def _source_towards(address: str, port: int) -> "str | None":
    """Return from which of its addresses this machine would send there, which sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((address, port))
        return str(asking.getsockname()[0])
    return None


def _connect(address: str, port: int, limit_s: float) -> socket.socket:
    if port:
        return socket.create_connection((address, port), timeout=limit_s)
    sock = socket.socket(socket.AF_UNIX)  # a path: the near end of a tunnel
    sock.settimeout(limit_s)
    sock.connect(address)
    return sock


def _listen_at(port: int) -> socket.socket:
    for family, everywhere in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            sock = socket.socket(family)
        except OSError:  # a kernel without IPv6
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((everywhere, port))
            sock.listen(64)
            return sock
        except OSError as error:
            sock.close()
            if family == socket.AF_INET or error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise OSError(errno.EAFNOSUPPORT, "this machine has neither IPv6 nor IPv4")


def _listen_at_path(path: str, token: str) -> "str | None":
    """Listen where a tunnel ends; return what went wrong, or None."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        os.mkdir(os.path.dirname(path), 0o700)
        sock.bind(path)
        sock.listen(4)
    except OSError as error:
        sock.close()
        return error.strerror
    _start_thread(_welcome, sock, token)
    return None


def _welcome(listener: socket.socket, token: str) -> None:
    for _ in range(ACCEPTED_MAX):
        sock, _ = listener.accept()
        _start_thread(_take_in, sock, token)


def _take_in(sock: socket.socket, token: str) -> None:
    with contextlib.closing(sock), contextlib.suppress(OSError):
        sock.settimeout(10)
        left = TRIED_BYTES
        while left > 0:
            data = sock.recv(left)
            if not data:
                return
            left -= len(data)
        sock.sendall(token.encode().ljust(TRIED_BYTES, b"."))


def _start_thread(function: "Callable[..., Any]", *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _find_holder(port: int) -> Facts:
    """Return which process listens at a port, and whose it is, as far as one may know."""
    holder: "dict[str, Any]" = {"user": None, "pid": None, "command": None}
    inode = ""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in _read(table).splitlines()[1:]:
                words = line.split()
                if words[3] == LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    holder["user"], inode = _name_of(int(words[7])), words[9]
    for path in glob.glob("/proc/[0-9]*/fd/*") if inode else ():
        with contextlib.suppress(OSError):  # not ours to look at, or just closed
            if os.readlink(path) == "socket:[%s]" % inode:
                holder["pid"] = int(path.split("/")[2])
                holder["command"] = _command_of(holder["pid"])
                break
    return holder


def _rows(printed: str, about: str) -> "list[dict[str, str]]":
    """Return what nvidia-smi has printed about some properties; the last one may hold commas."""
    names, rows = about.split(","), []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.split(",", len(names) - 1)]
        if len(cells) == len(names):
            rows.append({name: cells[index] for index, name in enumerate(names)})
    return rows


def _owner_of(pid: str) -> str:
    with contextlib.suppress(OSError, ValueError):  # in a container, those outside have no number
        return _name_of(os.stat("/proc/%d" % int(pid)).st_uid)
    return ""


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "user %d" % uid


def _command_of(pid: Any) -> "str | None":
    with contextlib.suppress(OSError, ValueError):
        words = _read("/proc/%d/cmdline" % int(pid)).replace("\0", " ").split()
        return " ".join(words)[:200] or None
    return None


def _version_of(module: str) -> str:
    """Return a module's version from its files; "" if they do not tell."""
    prefix = os.path.dirname(os.path.dirname(sys.executable))  # without site, sys has another one
    for folder in sys.path + glob.glob(prefix + "/lib/python*/*-packages"):
        for name in ("version.py", "_version.py", "__init__.py"):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = _read(os.path.join(folder, module, name))
                found = re.search(r"(?m)^__version__ = ['\"](.*)['\"]", text)
                if found:
                    return found.group(1)
    return ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read(1 << 20)


def main() -> None:
    """Look at everything, and answer questions until stdin ends, or for as long as allowed."""
    stdin: Any = sys.stdin.buffer.raw  # type: ignore[union-attr]
    settings = json.loads(stdin.readline())
    signal.alarm(settings["life_s"])
    os.environ.update(settings["environment"])
    telling = threading.Lock()

    def tell(name: str, facts: Facts) -> None:
        line = "\n%s %s\n" % (settings["marker"], json.dumps([name, facts]))
        data = line.encode()
        with telling, contextlib.suppress(OSError):  # nobody is there any more
            while data:
                data = data[os.write(1, data) :]

    probe = Probe(settings, tell)
    try:
        probe.look_at_everything()
        for line in iter(stdin.readline, b""):
            probe.answer(json.loads(line))
    finally:
        probe.end()
        if settings["socket"]:
            shutil.rmtree(os.path.dirname(settings["socket"]), ignore_errors=True)
        os._exit(0)  # some thread may hang where no signal reaches it


if __name__ == "__main__":
    main()
