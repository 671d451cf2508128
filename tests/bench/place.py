"""Where the proxies are measured: CPUs and their clocks, processes, the app and a directory."""

import contextlib
import glob
import mmap
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import time

from profiles import BROWSER, HOSTS, request_bytes

WORK = os.path.abspath("target/bench")


class Unreadable(Exception):
    """A measurement that went wrong, and why."""


# The proxy has a CPU alone; the app and the generator share another one if there are no more.
CPUS = sorted(os.sched_getaffinity(0))
PROXY_CPU, ORIGIN_CPU, LOAD_CPU = CPUS[0], CPUS[-2] if len(CPUS) > 2 else CPUS[-1], CPUS[-1]

GIVEN = set()


def cpu_ns(pid):
    """What a process and its threads, those that have ended too, have run, as clock_getcpuclockid(3) has it."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def family(pid):
    """A process and its descendants: nginx has a worker."""
    found = [pid]
    for of in found:
        for file in glob.glob(f"/proc/{of}/task/*/children"):
            with open(file) as children:
                found += [int(child) for child in children.read().split()]
    return found


def proportional_kib(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            total += int(re.search(r"^Pss: +(\d+) kB", rollup.read(), re.M).group(1))
    return total


def free_port():
    """One that nobody was given before: two proxies on one port, as SO_REUSEPORT allows, would share the load."""
    while True:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
        if port not in GIVEN:
            GIVEN.add(port)
            return port


def end(process, how=signal.SIGTERM):
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# All that is started is in one process group, which ends with the benchmark, whatever ended that: this shell leads the
# group, and waits until nothing holds the other end of its input. To a group without a parent, in which something is
# stopped, the kernel sends SIGHUP first.
GUARD = 'trap "" HUP; read -r _; rm -rf "$0"; kill -9 0'


class Place:
    """A directory of this run's own with the app, its sockets, a certificate and the proxies' logs. In memory where
    that can be had, because a disk would be one more thing that differs between rounds."""

    def __enter__(self):
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.dir = tempfile.mkdtemp(prefix="hostward-bench-", dir=shm)
        os.chmod(self.dir, 0o755)
        self.guard = subprocess.Popen(["sh", "-c", GUARD, self.dir], stdin=subprocess.PIPE, process_group=0)
        self.app, self.http, self.uwsgi = free_port(), f"{self.dir}/http", f"{self.dir}/uwsgi"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=www.example.com", "-addext", "subjectAltName=DNS:www.example.com",
             "-keyout", f"{self.dir}/key", "-out", f"{self.dir}/cert"], check=True, stderr=subprocess.DEVNULL)
        with open(f"{self.dir}/pem", "w") as pem:
            for part in ("cert", "key"):
                pem.write(open(f"{self.dir}/{part}").read())
        self.request = f"{self.dir}/request"
        with open(self.request, "wb") as request:
            request.write(request_bytes("GET", "/small", BROWSER))
        argv = [f"{WORK}/origin", f"{self.dir}/count", str(self.app), self.http, self.uwsgi]
        self.origin = self.spawn(argv, {ORIGIN_CPU})
        await_port(self.app, self.origin)
        with open(f"{self.dir}/count", "r+b") as file:
            self.counter = mmap.mmap(file.fileno(), 8)
        return self

    def spawn(self, argv, cpus, **more):
        """Starts a program on these CPUs, which it inherits: whatever ran between fork and exec (`preexec_fn` takes
        1.6 ms) would count as its start."""
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        try:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=self.guard.pid, **more)
        finally:
            os.sched_setaffinity(0, own)

    def count(self):
        return struct.unpack("Q", self.counter[:8])[0]

    def __exit__(self, *_):
        self.guard.communicate()


def await_port(port, process, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unreadable(f"{process.args[0]} doesn't listen (exit code {process.poll()})") from None
            time.sleep(0.01)


def ask(port, path, host="www.example.com", tls=False):
    """One request, on a connection of its own: status and body. A free port may have been taken meanwhile, as the port
    of somebody's connection, even of this one, which then reads what it has sent."""
    fields = [("Host", host)] + BROWSER[1:] + [("Connection", "close")]
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        if tls:
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            connection = stack.enter_context(trusting.wrap_socket(connection, server_hostname=HOSTS[0]))
        connection.sendall(request_bytes("GET", path, fields))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 "):
        raise Unreadable(f"no answer from port {port}, but {answer[:80]}")
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode("latin-1")


class Watch:
    """What the CPUs did meanwhile for others than this benchmark: other processes, and other machines."""

    def __init__(self, place, proxies=()):
        self.place, self.proxies, self.before = place, proxies, self.now(place, proxies)

    @staticmethod
    def now(place, proxies):
        with open("/proc/stat") as stat:
            ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in stat.readline().split()[1:9]]
        user, nice, system, _idle, _wait, irq, soft_irq, stolen = ticks
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        its = sum(usage.ru_utime + usage.ru_stime for usage in ours)
        its += (cpu_ns(place.origin.pid) + sum(proxy.cpu() for proxy in proxies)) / 1e9
        return sum(ticks), user + nice + system + irq + soft_irq - its, stolen

    def shares(self):
        now = self.now(self.place, self.proxies)
        total, others, stolen = (after - before for before, after in zip(self.before, now))
        return {"others": max(0, others / total), "steal": stolen / total}
