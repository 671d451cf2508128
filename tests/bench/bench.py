"""Measures proxies beside each other; see `run`, which prepares what this needs.

What is compared is the CPU time that a proxy takes for a request, by the kernel's accounting (its process clock), while a
closed loop keeps it busy: requests per second would mostly measure the generator.

Each round starts every proxy afresh, on the same CPU. A virtual machine is a tenth slower for some seconds and then fast
again, so they take turns of half a second: one generator goes on, all others are stopped. Every other turn goes through
them in reverse. A ratio is formed turn by turn, a round's is the median of its turns', and the interval is over rounds. Two
nginx take part: how much these two differ is what a difference between others may be without meaning anything.
"""

import argparse
import contextlib
import dataclasses
import glob
import json
import mmap
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

import document

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.path.abspath("target/bench")
HOSTWARD = os.environ.get("HOSTWARD", "")
# How long a proxy has the machine at a time, and how long before that it may get going again.
TURN, SETTLE = 0.4, 0.1
WARM_UP = 0.8
IDLE = 10_000
DESCRIPTORS = IDLE + 4096
CIDRS = 5_000
# As many as fit into a variable: the kernel takes 128 KiB.
MANY_HOSTS = 10_000
LATENCY_PEERS = ("direct", "nginx", "hostward", "haproxy", "relay", "control")
# Above this, what is measured says more about the machine than about the proxies.
MOST_SPREAD = 0.10
# Latency alone is repeated while other processes take more of the CPUs.
MOST_OTHERS, TRIES = 0.03, 10
HOSTS = ["www.example.com", "example.com", "api.example.com"]

# nginx has 8 buffers of 4 KiB for an answer and the rest in a file; this is what hostward has, about.
TUNED = "proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 256k; proxy_max_temp_file_size 0;"

# What Chrome sends, and an Application Load Balancer adds: twenty fields beside the request line.
BROWSER = [
    ("Host", "www.example.com"),
    ("X-Forwarded-For", "203.0.113.7"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Port", "443"),
    ("X-Amzn-Trace-Id", "Root=1-67891233-abcdef012345678912345678"),
    ("sec-ch-ua", '"Chromium";v="130", "Google Chrome";v="130", "Not?A_Brand";v="99"'),
    ("sec-ch-ua-mobile", "?0"),
    ("sec-ch-ua-platform", '"macOS"'),
    ("upgrade-insecure-requests", "1"),
    ("user-agent", "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) "
                   "Chrome/130.0.0.0 Safari/537.36"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"),
    ("sec-fetch-site", "same-origin"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-user", "?1"),
    ("sec-fetch-dest", "document"),
    ("referer", "https://www.example.com/account/orders"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
    ("cookie", "csrftoken=7bq1n9wV4mJtYxkRz0sLhE2aUdPoGf5C; sessionid=k3v8m2x7q1w9e4r6t5y0u8i2o7p1a3s6; "
               "_ga=GA1.1.1234567890.1700000000; consent=accepted"),
    ("priority", "u=0, i"),
]
BARE = BROWSER[:1]

PROXIES = ["nginx", "hostward", "haproxy", "relay", "envoy", "caddy"]

@dataclasses.dataclass
class Profile:
    title: str
    path: str = "/small"
    head: tuple = tuple(BROWSER)
    connections: int = 64
    generator: str = "wrk"  # h2load, websocket
    body: int = 0
    upstream: str = "tcp"  # unix, uwsgi
    door: str = "http"  # tls, h2c
    idle: int = 0
    peers: tuple = tuple(PROXIES)


NO_RELAY = tuple(peer for peer in PROXIES if peer != "relay")
PROFILES = {
    "browser": Profile("a browser's 20 fields behind an ALB, 60 bytes", peers=tuple(PROXIES + ["direct"])),
    "bare": Profile("a bare head, 60 bytes", "/bare", tuple(BARE)),
    "4k": Profile("4 KiB of JSON", "/4k"),
    "64k": Profile("64 KiB", "/64k", peers=("tuned", *PROXIES)),
    "1m": Profile("1 MiB", "/1m", connections=16, peers=("tuned", *PROXIES)),
    "post": Profile("POST of 1 KiB", body=1024),
    "websocket": Profile("WebSocket echo of 32 bytes", "/ws", generator="websocket"),
    "tls": Profile("TLS to the proxy", door="tls", peers=NO_RELAY),
    "h2c": Profile("HTTP/2 to the proxy, 8 connections of 8 requests", generator="h2load", door="h2c", connections=8,
                   peers=NO_RELAY),
    "uwsgi": Profile("uwsgi over a Unix socket to the app", "/uwsgi/small", upstream="uwsgi", peers=("nginx", "hostward")),
    "unix": Profile("HTTP over a Unix socket to the app", upstream="unix", peers=NO_RELAY),
    "c1": Profile("1 connection", connections=1),
    "c16": Profile("16 connections", connections=16),
    "c512": Profile("512 connections", connections=512),
    "idle10k": Profile("64 connections beside 10,000 idle ones", idle=IDLE, peers=NO_RELAY),
}


class Unreadable(Exception):
    """A measurement that went wrong, and why."""


# The proxy has a CPU alone; the app and the generator share another one if there are no more.
CPUS = sorted(os.sched_getaffinity(0))
PROXY_CPU, ORIGIN_CPU, LOAD_CPU = CPUS[0], CPUS[-2] if len(CPUS) > 2 else CPUS[-1], CPUS[-1]


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
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def spawn(argv, cpus, **more):
    """Starts a program on these CPUs. It inherits them: whatever ran between fork and exec would count as its start."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, **more)
    finally:
        os.sched_setaffinity(0, own)


def end(process, how=signal.SIGTERM):
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Place:
    """A directory of this run's own with the app, its sockets, a certificate and the proxies' logs. In memory where that
    can be had, because a disk would be one more thing that differs between rounds."""

    def __enter__(self):
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.dir = tempfile.mkdtemp(prefix="hostward-bench-", dir=shm)
        os.chmod(self.dir, 0o755)
        self.app, self.http, self.uwsgi = free_port(), f"{self.dir}/http", f"{self.dir}/uwsgi"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=www.example.com", "-addext", "subjectAltName=DNS:www.example.com",
             "-keyout", f"{self.dir}/key", "-out", f"{self.dir}/cert"], check=True, stderr=subprocess.DEVNULL)
        with open(f"{self.dir}/pem", "w") as pem:
            for part in ("cert", "key"):
                pem.write(open(f"{self.dir}/{part}").read())
        self.request = f"{self.dir}/request"
        with open(self.request, "wb") as request:
            request.write(request_bytes("GET", "/small", BROWSER))
        self.origin = spawn([f"{WORK}/origin", f"{self.dir}/count", str(self.app), self.http, self.uwsgi], {ORIGIN_CPU})
        await_port(self.app, self.origin)
        with open(f"{self.dir}/count", "r+b") as file:
            self.counter = mmap.mmap(file.fileno(), 8)
        return self

    def count(self):
        return struct.unpack("Q", self.counter[:8])[0]

    def __exit__(self, *_):
        end(self.origin)
        shutil.rmtree(self.dir)


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


def envoy_program():
    return next(iter(glob.glob(f"{WORK}/envoy/lib/python3*/site-packages/envoy/_bin/envoy")), None)


def missing():
    """The proxies that can't be had here, and why."""
    found = {"hostward": HOSTWARD and os.access(HOSTWARD, os.X_OK), "envoy": envoy_program()}
    for name in ("nginx", "haproxy", "caddy"):
        found[name] = shutil.which(name)
    return [name for name, path in found.items() if not path]


def versions():
    def first(pattern, *argv):
        said = subprocess.run(argv, capture_output=True, text=True)
        match = re.search(pattern, said.stdout + said.stderr)
        return match.group(1) if match else "unknown"

    their = {
        "hostward": lambda: first(r"hostward ([\d.]+)", HOSTWARD, "--version"),
        "nginx": lambda: first(r"nginx/([\d.]+)", "nginx", "-v"),
        "haproxy": lambda: first(r"version ([\d.]+)", "haproxy", "-v"),
        "envoy": lambda: first(r"version: \w+/([\d.]+)", envoy_program(), "--version"),
        "caddy": lambda: first(r"v?([\d.]+)", "caddy", "version"),
    }
    absent = missing()
    found = {name: ask() for name, ask in their.items() if name not in absent}
    found["wrk"] = first(r"wrk \S*?([\d.]+)", "wrk", "-v")
    if shutil.which("h2load"):
        found["h2load"] = first(r"nghttp2/([\d.]+)", "h2load", "--version")
    return found


class Proxy:
    """One proxy. It runs between `with` and its end."""

    def __init__(self, name, place, profile, cpus=None, settings=()):
        self.kind, self.place, self.profile = name, place, profile
        self.cpus, self.settings, self.process = cpus or {PROXY_CPU}, dict(settings), None
        self.ports = {door: free_port() for door in ("http", "h2c", "tls")}
        if name == "direct":
            self.ports["http"] = place.app

    def begin(self):
        self.dir = tempfile.mkdtemp(prefix=f"{self.kind}-", dir=self.place.dir)
        os.chmod(self.dir, 0o755)
        self.log = f"{self.dir}/access.log"
        if self.kind == "direct":
            return
        argv, env, self.one_port = self.command(self.profile, self.settings)
        if self.one_port:
            self.ports = dict.fromkeys(self.ports, self.ports["http"])
        with open(f"{self.dir}/output", "wb") as output, open(self.log, "wb") as log:
            self.begun = time.perf_counter_ns()
            self.process = spawn(argv, self.cpus, env={**os.environ, **env},
                                 stdout=log if self.kind == "hostward" else output, stderr=output)

    def __enter__(self):
        self.begin()
        if not self.process:
            return self
        try:
            await_port(self.ports[self.profile.door], self.process)
            # Something may listen before there is a worker that answers.
            if self.kind != "relay":
                ask(self.ports["http"], "/", "evil.example", tls=self.profile.door == "tls" and self.one_port)
        except (Unreadable, OSError) as why:
            with open(f"{self.dir}/output") as output:
                said = output.read()[-2000:]
            self.stop()
            raise Unreadable(f"{why}: {said}") from None
        self.pids = family(self.process.pid)
        return self

    def command(self, profile, settings):
        """What starts it, its environment, and whether one port takes whatever comes."""
        place, unix = self.place, profile.upstream != "tcp"
        if self.kind == "relay":
            return [f"{WORK}/relay", str(self.ports["http"]), str(place.app)], {}, True
        if self.kind == "hostward":
            return [HOSTWARD], self.hostward(profile, settings), True
        file = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "envoy": "envoy.yaml", "caddy": "Caddyfile"}[self.kind]
        upstream = f"127.0.0.1:{place.app}"
        if unix:
            upstream = {"nginx": f"unix:{place.http}", "haproxy": f"unix@{place.http}", "caddy": f"unix/{place.http}",
                        "envoy": f"{{pipe: {{path: {place.http}}}}}"}[self.kind]
        elif self.kind == "envoy":
            upstream = f"{{socket_address: {{address: 127.0.0.1, port_value: {place.app}}}}}"
        # The memory that nginx and HAProxy take for connections depends on how many there may be.
        values = {"DIR": self.dir, "LOG": self.log, "USER": "root" if os.geteuid() == 0 else "nobody",
                  "UPSTREAM": upstream, "UWSGI": place.uwsgi, "CERT": f"{place.dir}/cert", "KEY": f"{place.dir}/key",
                  "PEM": f"{place.dir}/pem", "CONNECTIONS": IDLE + 1024 if profile.idle else 2048,
                  "BUFFERS": "", **{door.upper(): port for door, port in self.ports.items()}, **settings}
        with open(f"{HERE}/peers/{file}") as template:
            text = re.sub(r"@([A-Z0-9]+)@", lambda match: str(values[match.group(1)]), template.read())
        config = f"{self.dir}/{file}"
        with open(config, "w") as written:
            written.write(text)
        if self.kind == "nginx":
            return ["nginx", "-p", self.dir, "-e", "stderr", "-c", config], {}, False
        if self.kind == "haproxy":
            return ["haproxy", "-db", "-f", config], {}, False
        self.ports["h2c"] = self.ports["http"]
        if self.kind == "caddy":
            return (["caddy", "run", "--config", config, "--adapter", "caddyfile"],
                    {"GOMAXPROCS": "1", "HOME": self.dir, "XDG_DATA_HOME": self.dir, "XDG_CONFIG_HOME": self.dir}, False)
        return ([envoy_program(), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c", config],
                {}, False)

    def hostward(self, profile, settings):
        place = self.place
        upstream = {"tcp": f"http://127.0.0.1:{place.app}", "unix": f"http+unix:{place.http}",
                    "uwsgi": f"uwsgi+unix:{place.uwsgi}"}[profile.upstream]
        env = {"ALLOWED_HOSTS": ",".join(HOSTS), "UPSTREAM": upstream, "LISTEN": f"127.0.0.1:{self.ports['http']}",
               "ADMIN_LISTEN": f"127.0.0.1:{free_port()}", "THREADS": "1", "TASK_IP": "off", "LOG_FORMAT": "json",
               "MAX_CONNECTIONS": str(IDLE + 1024 if profile.idle else 2048)}
        if profile.door == "tls":
            env.update(TLS="files", TLS_CERT=f"{place.dir}/cert", TLS_KEY=f"{place.dir}/key")
        env.update(settings)
        return {f"HOSTWARD_{name}": value for name, value in env.items()}

    def cpu(self):
        return sum(cpu_ns(pid) for pid in self.pids) if self.process else 0

    def stop(self):
        if self.process:
            # hostward drains on SIGTERM; the others end at once.
            end(self.process, signal.SIGINT if self.kind == "hostward" else signal.SIGTERM)

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.dir)


def ask(port, path, host="www.example.com", tls=False):
    """One request, on a connection of its own: status and body."""
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
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode("latin-1")


def request_bytes(method, path, fields, body=b""):
    lines = [f"{method} {path} HTTP/1.1"] + [f"{name}: {value}" for name, value in fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def check_features(name, place, profile):
    """Equal features, or the comparison is none: everybody must write the fields, refuse a foreign host, and log."""
    with Proxy(name, place, profile) as proxy:
        path = profile.path.rsplit("/", 1)[0] + "/seen"
        status, seen = ask(proxy.ports["http"], path)
        for field in ("For", "Proto", "Port", "Host"):
            if not re.search(rf"(?im)^(HTTP_)?X.Forwarded.{field}: .", seen):
                raise Unreadable(f"{name} writes no X-Forwarded-{field} (status {status}):\n{seen}")
        for field in ("X.Request.Id", "X.Real.IP"):
            if not re.search(rf"(?im)^(HTTP_)?{field}: .", seen):
                raise Unreadable(f"{name} writes no {field} (status {status}):\n{seen}")
        before = place.count()
        status, _ = ask(proxy.ports["http"], path, "evil.example")
        if status == 200 or place.count() != before:
            raise Unreadable(f"{name} forwards a foreign host")
        if name != "envoy":
            time.sleep(1.2)  # nginx flushes once a second, hostward sooner; Envoy when it ends
        proxy.stop()
        logged = [json.dumps(line) for line in json_lines(proxy.log)]
        if not any(all(part in line for part in (path, HOSTS[0], "Mozilla")) for line in logged):
            raise Unreadable(f"{name} logs no such request as JSON: {logged}")


def json_lines(path):
    """The objects in a log. HAProxy's ring has a frame of other bytes around each."""
    with open(path, encoding="latin-1") as log:
        text = log.read()
    for begin in re.finditer(r'\{"', text):
        try:
            yield json.JSONDecoder().raw_decode(text, begin.start())[0]
        except json.JSONDecodeError:
            continue


def check_all(place, profile, checked):
    for peer in profile.peers:
        if peer in ("tuned", "relay", "direct", *missing()) or (peer, profile.upstream) in checked:
            continue
        check_features(peer, place, Profile("", profile.path, upstream=profile.upstream))
        checked.add((peer, profile.upstream))


class Load:
    """A closed loop that can be stopped and continued."""

    def __init__(self, profile, place, proxy):
        self.generator, port = profile.generator, proxy.ports[profile.door]
        scheme = "https" if profile.door == "tls" else "http"
        if self.generator == "wrk":
            script = f"{proxy.dir}/head.lua"
            with open(script, "w") as lua:
                for name, value in profile.head:
                    lua.write(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n")
                if profile.body:
                    lua.write(f'wrk.method = "POST"\nwrk.body = string.rep("x", {profile.body})\n')
                    lua.write('wrk.headers["Content-Type"] = "application/octet-stream"\n')
            argv = ["wrk", "-t1", f"-c{profile.connections}", "-d3600s", "-s", script,
                    f"{scheme}://127.0.0.1:{port}{profile.path}"]
        elif self.generator == "h2load":
            argv = ["h2load", f"-c{profile.connections}", "-m8", f"--connect-to=127.0.0.1:{port}"]
            argv += [part for name, value in profile.head if name != "Host" for part in ("-H", f"{name}: {value}")]
            argv.append(f"http://{HOSTS[0]}{profile.path}")
            # Once it has been stopped it says nothing at its end, so its answers are judged before.
            said = subprocess.run(argv + ["-n1000"], capture_output=True, text=True).stdout
            if "status codes: 1000 2xx" not in said:
                raise Unreadable(f"h2load says:\n{said[-1500:]}")
            argv.append("-D3600")
        else:
            argv = [f"{WORK}/load", "websocket", str(port), str(profile.connections)]
        self.process = spawn(argv, {LOAD_CPU}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def go(self):
        self.process.send_signal(signal.SIGCONT)

    def finish(self):
        """Raises unless every answer was the right one."""
        if self.process.poll() is None and self.generator == "h2load":
            return
        self.go()
        time.sleep(0.05)  # until it really goes on: else wrk's waiting thread misses the signal
        self.process.send_signal(signal.SIGINT if self.generator == "wrk" else signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        if self.generator == "wrk":
            # The time for which it was stopped it takes for the proxy's.
            errors = re.search(r"Socket errors: (?!connect 0, read 0, write 0, )", said)
            bad = "Non-2xx" in said or errors or "requests in" not in said
        else:
            bad = self.process.returncode != 0 or not said.strip().isdigit()
        if bad:
            raise Unreadable(f"the generator says:\n{said[-1500:]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@contextlib.contextmanager
def idle_connections(place, proxy):
    """Connections that have had one answer each, and now say nothing."""
    argv = [f"{WORK}/load", "idle", str(proxy.ports["http"]), str(IDLE), place.request]
    with spawn(argv, {LOAD_CPU}, stdout=subprocess.PIPE, text=True) as holder:
        try:
            if holder.stdout.readline() != "idle\n":
                raise Unreadable(f"{IDLE} connections can't be made idle")
            yield
        finally:
            holder.kill()


class Runner:
    """A proxy with its load, which takes turns with others."""

    def __init__(self, name, proxy, stack):
        self.name, self.place = name, proxy.place
        try:
            self.proxy = stack.enter_context(proxy)
            if proxy.profile.idle:
                stack.enter_context(idle_connections(proxy.place, proxy))
            self.load = stack.enter_context(Load(proxy.profile, proxy.place, proxy))
        except Unreadable as why:
            raise Unreadable(f"{name}: {why}") from None
        time.sleep(WARM_UP)
        self.load.stop()

    def clocks(self):
        return (time.monotonic_ns(), self.place.count(), self.proxy.cpu(), cpu_ns(self.place.origin.pid),
                cpu_ns(self.load.process.pid))

    def turn(self):
        """CPU microseconds for a request, and what they are judged by."""
        self.load.go()
        time.sleep(SETTLE)
        before = self.clocks()
        time.sleep(TURN)
        after = self.clocks()
        self.load.stop()
        took, requests, cpu, origin, generator = (b - a for a, b in zip(before, after))
        if requests < 10:
            raise Unreadable(f"{self.name} answered {requests} requests")
        return {"cpu_us": cpu / requests / 1000, "all_us": (cpu + origin + generator) / requests / 1000,
                "per_second": requests * 1e9 / took, "busy": cpu / took}

    def finish(self):
        try:
            self.load.finish()
        except Unreadable as why:
            raise Unreadable(f"{self.name}: {why}") from None


def one_round(proxies, seconds):
    """Every proxy's turns."""
    with contextlib.ExitStack() as stack:
        runners = [Runner(name, proxy, stack) for name, proxy in proxies.items()]
        turns_of = {name: [] for name in proxies}
        for number in range(max(2, round(seconds / TURN))):
            for runner in runners[::1 if number % 2 == 0 else -1]:
                turns_of[runner.name].append(runner.turn())
        for runner in runners:
            runner.finish()
    return turns_of


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


def proxies_of(place, profile):
    absent = missing()
    found = {peer: Proxy(peer, place, profile) for peer in profile.peers if peer not in absent}
    if "tuned" in found:
        found["tuned"] = Proxy("nginx", place, profile, settings={"BUFFERS": TUNED})
    return {**found, "control": Proxy("nginx", place, profile)}


def variants(place):
    """hostward with little and with much to look through, and beside connections that are idle."""
    def ours(idle=0, **settings):
        return Proxy("hostward", place, dataclasses.replace(PROFILES["browser"], idle=idle), settings=settings)

    networks = [f"10.{at // 128}.{at % 128 * 2}.0/24" for at in range(CIDRS)]
    names = [f"h{at:04}.ex.com" for at in range(MANY_HOSTS - 1)]
    return {"base": ours(), "hosts": ours(ALLOWED_HOSTS=",".join(names + HOSTS[:1])),
            "cidrs": ours(TRUSTED_PROXIES=",".join(networks + ["127.0.0.0/8"])), "idle": ours(idle=IDLE), "control": ours()}


def workers(place):
    def ours(threads):
        return Proxy("hostward", place, PROFILES["browser"], cpus=set(CPUS[:2]), settings={"THREADS": str(threads)})

    return {"one": ours(1), "two": ours(2), "control": ours(1)}


def measure(proxies, rounds, seconds):
    """CPU time, in `rounds` of `seconds`; `proxies` makes them anew."""
    kept = []
    for number in range(rounds):
        kept.append(one_round(proxies(), seconds))
        print(f"  round {number + 1}: " + "  ".join(
            f"{document.NAMES[name]} {document.middle(turns, 'cpu_us'):.2f}" for name, turns in kept[-1].items()
            if name != "direct"), flush=True)
    return {"rounds": kept}


def measure_latency(place, rounds, seconds):
    """An open loop at a quarter and at 60 % of what nginx can, the same rate for everybody. One after the other instead of
    in turns: half a second has too few requests for a quantile."""
    def proxies():
        return {name: Proxy("nginx" if name == "control" else name, place, PROFILES["browser"])
                for name in LATENCY_PEERS if name not in missing()}

    with contextlib.ExitStack() as stack:
        most = Runner("nginx", proxies()["nginx"], stack).turn()["per_second"]
    print(f"  nginx takes {most:,.0f} requests a second")
    kept = []
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            running = [(name, stack.enter_context(proxy)) for name, proxy in proxies().items()]
            of_round = {name: [] for name, _ in running}
            for turn in range(2):
                for name, proxy in running[::1 if turn == 0 else -1]:
                    of_round[name].append({share: undisturbed(place, [its for _, its in running], lambda: quantiles(
                        place, proxy, most * float(share), seconds)) for share in ("0.25", "0.6")})
        kept.append(of_round)
        print(f"  round {number + 1}, p99 at 60 %: " + "  ".join(
            f"{document.NAMES[name]} {min(turn['0.6']['0.99'] for turn in turns):.0f}" for name, turns in of_round.items()),
            flush=True)
    return {"rounds": kept, "nginx_most": most}


def undisturbed(place, running, measurement):
    """A tail is made by whatever else runs, so the measurement is repeated until hardly anything does."""
    for _ in range(TRIES):
        watch = Watch(place, running)
        found = measurement()
        others = watch.shares()["others"]
        if others <= MOST_OTHERS:
            return found
        time.sleep(1)
    raise Unreadable(f"other processes take {others:.0%} of the CPUs")


def quantiles(place, proxy, rate, seconds):
    argv = [f"{WORK}/load", "open", str(proxy.ports["http"]), "64", str(rate), str(seconds), place.request]
    load = spawn(argv, {LOAD_CPU}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, wrong = load.communicate(timeout=seconds + 30)
    finally:
        end(load, signal.SIGKILL)
    if load.returncode:
        raise Unreadable(f"{proxy.kind} at {rate:.0f} requests a second: {wrong}")
    return json.loads(said)


def measure_memory(place, rounds, _seconds):
    """Proportional set size: a page that two processes share counts half in each."""
    kept = []
    for number in range(rounds):
        of_round = {}
        for name in (peer for peer in NO_RELAY if peer not in missing()):
            plain = PROFILES["browser"]
            with Proxy(name, place, plain) as proxy:
                time.sleep(1)
                at_start = proportional_kib(proxy.pids)
            with Proxy(name, place, dataclasses.replace(plain, idle=IDLE)) as proxy:
                time.sleep(1)
                before = proportional_kib(proxy.pids)
                with idle_connections(place, proxy):
                    time.sleep(3)
                    beside = proportional_kib(proxy.pids)
            of_round[name] = {"start_kib": at_start, "connection_kib": (beside - before) / IDLE}
        kept.append(of_round)
        print(f"  round {number + 1}: " + "  ".join(
            f"{document.NAMES[name]} {its['start_kib'] / 1024:.1f} MiB + {its['connection_kib']:.2f} KiB"
            for name, its in of_round.items()), flush=True)
    return {"rounds": kept}


def measure_start(place, rounds, _seconds):
    """From before the fork to the first connection that is accepted."""
    kept = []
    for _ in range(rounds * 3):
        of_round = {}
        for name in (peer for peer in PROXIES if peer not in missing()):
            proxy = Proxy(name, place, PROFILES["browser"])
            proxy.begin()
            try:
                while True:
                    with socket.socket() as client:
                        if client.connect_ex(("127.0.0.1", proxy.ports["http"])) == 0:
                            of_round[name] = {"ms": (time.perf_counter_ns() - proxy.begun) / 1e6}
                            break
                    if time.perf_counter_ns() - proxy.begun > 20e9:
                        raise Unreadable(f"{name} doesn't listen")
                await_port(proxy.ports["http"], proxy.process)
            finally:
                proxy.__exit__()
        kept.append(of_round)
    return {"rounds": kept}


# What is measured otherwise than by PROFILES: title, and how.
STUDIES = {
    "latency": ("latency at fixed rates", measure_latency),
    "memory": (f"memory, at the start and for each of {IDLE:,} idle connections", measure_memory),
    "start": ("from start to first accept", measure_start),
    "growth": ("what many hosts, networks and idle connections cost",
               lambda place, *much: measure(lambda: variants(place), *much)),
    "workers": ("two workers", lambda place, *much: measure(lambda: workers(place), *much)),
}


def main():
    titles = {**{name: profile.title for name, profile in PROFILES.items()}, **{name: its[0] for name, its in STUDIES.items()}}
    parser = argparse.ArgumentParser(prog="tests/bench/run", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="profiles:\n" + "\n".join(f"  {name:<10} {its}" for name, its in titles.items()))
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="what to measure; everything if none is named")
    parser.add_argument("--quick", action="store_true", help="`browser` alone, in three minutes")
    parser.add_argument("--rounds", type=int, help="how often every proxy is started afresh")
    parser.add_argument("--seconds", type=float, help="for how long each is measured in a round")
    parser.add_argument("--publish", action="store_true", help="measure nothing, and write docs/performance.md")
    asked = parser.parse_args()
    results = document.Results(f"{WORK}/results.json")
    if asked.publish:
        document.write(results, "docs", titles)
        return
    for name in asked.profiles:
        if name not in titles:
            parser.error(f"no profile {name}")
    names = ["browser"] if asked.quick else asked.profiles or list(titles)
    rounds, seconds = asked.rounds or (4 if asked.quick else 5), asked.seconds or 3.0

    if len(CPUS) < 2:
        sys.exit("tests/bench/run: one CPU alone can't keep the proxy apart from its clients")
    os.sched_setaffinity(0, {LOAD_CPU})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < DESCRIPTORS and {"idle10k", "memory", "growth"} & set(names):
        sys.exit(f"tests/bench/run: needs `ulimit -n {DESCRIPTORS}` for {IDLE:,} idle connections")
    if {"hostward", "nginx"} & set(missing()):
        sys.exit("tests/bench/run: without hostward and nginx there is nothing to compare")
    for name in missing():
        print(f"left out: {document.NAMES[name]}, which is not installed")

    unreadable, checked = [], set()
    with Place() as place:
        for name in names:
            print(f"\n{name}: {titles[name]}", flush=True)
            watch = Watch(place)
            try:
                if name in STUDIES:
                    found = STUDIES[name][1](place, rounds, seconds)
                else:
                    check_all(place, PROFILES[name], checked)
                    found = measure(lambda: proxies_of(place, PROFILES[name]), rounds, seconds)
                spread = document.spread(name, found)
                if spread is not None and spread > MOST_SPREAD:
                    raise Unreadable(f"two that are the same are up to {spread:.1%} apart")
            except Unreadable as why:
                unreadable.append(name)
                others = watch.shares()["others"]
                print(f"UNREADABLE, no result: {why} (other processes took {others:.1%} of the CPUs)", flush=True)
                continue
            found.update(title=titles[name], seconds=seconds, **watch.shares())
            results.put(name, found, versions())
            print(document.section(name, found), flush=True)
    document.write(results, WORK, titles)
    if unreadable:
        sys.exit(f"tests/bench/run: no result for {', '.join(unreadable)}")


if __name__ == "__main__":
    main()
