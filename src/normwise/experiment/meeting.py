"""Where the processes of a trial meet: a TCPStore that listens on this machine's loopback address alone."""

import os
import socket
from datetime import timedelta
from typing import Any

import psutil

HOST = "127.0.0.1"
FAILURE = "failure"
SECONDS_TO_ANSWER = 30.0


class Meeting:
    """Keeps the store, so that any of the processes may go; `environment` is what each of them needs.

    `before`: how many processes of other trials this machine has, whose GPUs come before those of these.

    >>> meeting = Meeting(2, before=4)
    >>> [meeting.environment(1)[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")], meeting.failure()
    (['1', '2', '5'], '')
    """

    def __init__(self, processes: int, before: int = 0) -> None:
        self.processes, self._before = processes, before
        listener = socket.create_server((HOST, 0))
        self._port = listener.getsockname()[1]
        self._store = _store(self._port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun would set for a process, and the network interface that no other machine sees."""
        numbers = {"RANK": rank, "LOCAL_RANK": self._before + rank}
        numbers |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), self.processes)
        place = {"MASTER_ADDR": HOST, "MASTER_PORT": str(self._port)}
        here = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _loopback())
        return {name: str(number) for name, number in numbers.items()} | place | here

    def failure(self) -> str:
        """Why the first process that told so has failed."""
        return self._store.get(FAILURE).decode() if self._store.check([FAILURE]) else ""


def reach() -> Any:
    """The store, from one of the processes."""
    return _store(int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=SECONDS_TO_ANSWER))


def tell_failure(reason: str) -> None:
    """Says why this process failed, if it is the first."""
    reach().compare_set(FAILURE, "", reason)


def _store(port: int, **options: Any) -> Any:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    return TCPStore(HOST, port, **options)


def _loopback() -> str:
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == HOST for address in addresses)
    )
