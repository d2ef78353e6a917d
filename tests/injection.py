#!/usr/bin/env python3
"""Makes system calls fail, one kind at a time, in a test process, its supervisors and its services.

    tests/injection.py BINARY

BINARY is the binary of the integration tests (`target/debug/deps/it-..`). Each cell runs one of its
victims with ten services, which include deaf daemons, under `strace -e inject`. A cell is bad if the
victim takes longer than 20 s, or if one of its processes is left 5 s after its end. Errors are fine:
if the guarantee needs a call that fails, the start fails. Four cells run at a time.
"""

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CALLS = """clone close_range dup2 execve fcntl getdents64 kill mkdir mmap openat pidfd_open
pidfd_send_signal pipe2 poll ppoll prctl read recvfrom rename rt_sigaction rt_sigprocmask sendto setsid
signalfd4 socketpair unlinkat wait4 waitid write""".split()
ERRORS = ["ENOSYS", "EPERM", "ENOMEM", "EMFILE", "EINTR", "EAGAIN"]
TIMES = ["1", "2", "5", "1+"]
BOUND = 20


def processes(mark):
    """The processes, except zombies, with the cell's directory in their environment or command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
            text = open(f"/proc/{pid}/environ", "rb").read() + open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            continue
        if state not in "ZX" and mark.encode() in text and int(pid) != os.getpid():
            found.append(int(pid))
    return found


def cell(binary, call, error, when):
    scratch = tempfile.mkdtemp(prefix="mki-")
    environment = dict(os.environ, TMPDIR=scratch, MIRAKURU_TEST_VICTIM=scratch, RUST_BACKTRACE="0")
    victim = [binary, "--exact", "--ignored", "traps::has_ten_services", "--test-threads=1"]
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
              "-e", f"inject={call}:error={error}:when={when}"]
    run = subprocess.Popen(strace + victim, env=environment, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    problem = None
    try:
        run.wait(BOUND)
    except subprocess.TimeoutExpired:
        problem = f"longer than {BOUND} s"
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    end = time.monotonic() + 5
    while processes(scratch) and time.monotonic() < end:
        time.sleep(0.05)
    left = processes(scratch)
    if left and not problem:
        problem = f"left {len(left)} processes"
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    shutil.rmtree(scratch, ignore_errors=True)
    return f"{call} {error} {when}", problem


def main():
    binary = os.path.abspath(sys.argv[1])
    cells = [(call, error, when) for when in TIMES for error in ERRORS for call in CALLS
             if call != "mmap" or error == "ENOMEM"]
    # Rust's standard library retries these two calls for ever: `poll` before `main`, and `write`
    # where the test harness prints.
    endless = [(call, "EINTR", "1+") for call in ("poll", "write")]
    cells = [one for one in cells if one not in endless]
    # `MIRAKURU_INJECTION_STEP=10` tests only every tenth cell.
    cells = cells[::int(os.environ.get("MIRAKURU_INJECTION_STEP", "1"))]
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name, problem in pool.map(lambda one: cell(binary, *one), cells):
            if problem:
                bad += 1
                print(f"{name}: {problem}", flush=True)
    print(f"{len(cells)} cells, {bad} bad")
    sys.exit(bad > 0)


main()
