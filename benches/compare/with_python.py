"""Runs Python mirakuru in the comparison, as its documentation describes.

Executes each line of the input, and answers with a line of CLOCK_MONOTONIC in nanoseconds: begun, ready, stopped.

    cycle PORT COMMAND...           one service
    together COUNT DELAY HELPER     this many helpers, on as many threads, stopped when all are ready
"""

import shlex
import socket
import sys
import threading
import time

from mirakuru import TCPExecutor


def cycle(port, command):
    begun = time.monotonic_ns()
    executor = TCPExecutor(command, host="127.0.0.1", port=int(port))
    executor.start()
    ready = time.monotonic_ns()
    executor.stop()
    return begun, ready, time.monotonic_ns()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def together(count, delay, helper):
    ports = free_ports(count)
    barrier = threading.Barrier(count)
    ready = []

    def live(port):
        command = [helper, "--delay", delay, "--listen", f"127.0.0.1:{port}"]
        executor = TCPExecutor(command, host="127.0.0.1", port=port)
        executor.start()
        barrier.wait()
        ready.append(time.monotonic_ns())
        executor.stop()

    threads = [threading.Thread(target=live, args=(port,)) for port in ports]
    begun = time.monotonic_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return begun, max(ready), time.monotonic_ns()


for line in sys.stdin:
    what, *rest = shlex.split(line)
    if what == "cycle":
        times = cycle(rest[0], rest[1:])
    else:
        times = together(int(rest[0]), rest[1], rest[2])
    print(*times, flush=True)
