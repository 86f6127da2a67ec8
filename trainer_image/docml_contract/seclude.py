"""Runs a command where it sees neither other processes' memory and environments nor this user's credential files, nor a network.

    python -I -S seclude.py NETWORK HIDDEN COMMAND…        NETWORK: host, none or gateway:FD; HIDDEN: a JSON list of files and folders

Standard library only: it starts user code under any Python. The command gets a user and a mount namespace of its own: the kernel then
refuses it `/proc/<pid>/environ` and ptrace of whatever runs outside, also of the same user, and HIDDEN is empty for it. It cannot gain
privileges, neither there nor by set-user-ID programs. Unless NETWORK is host, it has a loopback interface of its own and no other:
neither the machine's own services nor its metadata service, which knows the machine's credentials, can be reached. A gateway is an HTTP
proxy on that interface; the socket on which it is asked goes through FD, a Unix socket, to whoever serves it outside.

Where the machine allows no user namespaces, or none for networks (some containers, some distributions), the command runs all the same
without them, and one line says so: SECURITY.md says what it can do then.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

_NEW_USER, _NEW_MOUNTS, _NEW_NETWORK = 0x10000000, 0x00020000, 0x40000000  # of unshare(2)
_SET_INTERFACE_FLAGS, _UP = 0x8914, 1  # of netdevice(7)
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000  # of mount(2)
_NO_NEW_PRIVILEGES, _SECURE_BITS, _DROP_BOUND, _CHILD_SUBREAPER = 38, 28, 24, 36  # of prctl(2)
EXPOSED = (
    b"This machine allows no user namespaces: the experiment's code runs as a plain process of this user and can read this user's files, "
    b'see "What user code can do" in SECURITY.md\n'
)
REACHING = (
    b"This machine allows no network namespaces: the experiment's code can use the network, "
    b'see "What user code can do" in SECURITY.md\n'
)
_CAPABILITY_VERSION = 0x20080522  # of capset(2)
_NO_ROOT = 0b11  # user 0 has no more rights than another one, and cannot undo that


def main(network: str, hidden: list[str], command: list[str]) -> None:
    """Become the command; does not return."""
    enter(network, hidden)
    os.execvp(command[0], command)


def enter(network: str, hidden: list[str]) -> None:
    """Seclude this process, which has one thread, and what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    channel = int(network.partition(":")[2]) if network.startswith("gateway:") else None
    if network != "host" and _is_possible(libc, hidden, _NEW_NETWORK):
        _enter(libc, hidden, _NEW_NETWORK)
        if channel is not None:
            _open_gateway(channel)
    elif _is_possible(libc, hidden):
        _enter(libc, hidden)
        os.write(2, REACHING if network != "host" else b"")
    else:
        os.write(2, EXPOSED)
    if channel is not None:
        os.close(channel)
    if hasattr(libc, "prctl"):
        _prctl(libc, _NO_NEW_PRIVILEGES, 1)
        _prctl(libc, _CHILD_SUBREAPER, 1)  # what it starts stays below it, and is found when it has to end


def _is_possible(libc: ctypes.CDLL, hidden: list[str], further: int = 0) -> bool:
    """Tried by a child, since there is no way back out of half a namespace."""
    child = os.fork()
    if child == 0:
        try:
            _enter(libc, hidden, further)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _enter(libc: ctypes.CDLL, hidden: list[str], further: int = 0) -> None:
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(_NEW_USER | _NEW_MOUNTS | further))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount(libc, None, "/", None, _RECURSIVE | _PRIVATE)
    for path in hidden:
        if not os.access(path, os.F_OK):
            continue
        if Path(path).is_dir():
            _mount(libc, "none", path, "tmpfs", 0, "size=64k,mode=0700")
        else:
            _mount(libc, "/dev/null", path, None, _BIND)
    if further & _NEW_NETWORK:
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, _SET_INTERFACE_FLAGS, struct.pack("16sH22x", b"lo", _UP))
    for capability in range(64):
        libc.prctl(_DROP_BOUND, ctypes.c_ulong(capability), *[ctypes.c_ulong(0)] * 3)
    _prctl(libc, _SECURE_BITS, _NO_ROOT)
    # A program that is started has none of the rights that the namespaces gave; a fork that goes on has to give them up.
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()))


def _open_gateway(channel: int) -> None:
    """Listen for the gateway, let it have the socket, and name it as the programs that load models look for proxies."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(fileno=os.dup(channel)) as unix:
        socket.send_fds(unix, [b"g"], [listener.fileno()])
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for name, value in {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "localhost,127.0.0.1,::1"}.items():
        os.environ[name] = os.environ[name.lower()] = value


def _mount(
    libc: ctypes.CDLL, source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    source_, kind_, data_ = (None if each is None else each.encode() for each in (source, kind, data))
    _check(libc.mount(source_, os.fsencode(target), kind_, ctypes.c_ulong(flags), data_))


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    _check(libc.prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno())


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:])
