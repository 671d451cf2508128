"""The proxies: which can be had, how each is configured and started."""

import glob
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

from profiles import HOSTS, IDLE
from place import PROXY_CPU, Unreadable, WORK, ask, await_port, cpu_ns, end, family, free_port

HERE = os.path.dirname(os.path.abspath(__file__))
HOSTWARD = f"{WORK}/hostward"


def envoy_program():
    return next(iter(glob.glob(f"{WORK}/envoy/lib/python3*/site-packages/envoy/_bin/envoy")), None)


def missing():
    """The proxies that can't be had here, and why."""
    found = {"hostward": os.access(HOSTWARD, os.X_OK), "envoy": envoy_program()}
    for name in ("nginx", "haproxy", "caddy"):
        found[name] = shutil.which(name)
    return [name for name, path in found.items() if not path]


def build():
    """Which hostward this is. Its version alone doesn't say that."""
    with open(HOSTWARD, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return {"digest": digest, "commit": os.environ["COMMIT"]}


def versions():
    def first(pattern, *argv):
        said = subprocess.run(argv, capture_output=True, text=True)
        match = re.search(pattern, said.stdout + said.stderr)
        return match.group(1) if match else "unknown"

    their = {
        "hostward": lambda: "{}, built from {commit} (SHA-256 {digest}…)".format(
            first(r"hostward ([\d.]+)", HOSTWARD, "--version"), **build()),
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
            self.process = self.place.spawn(
                argv, self.cpus, env={**os.environ, **env},
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
            homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), self.dir)
            argv = ["caddy", "run", "--config", config, "--adapter", "caddyfile"]
            return argv, {"GOMAXPROCS": "1", **homes}, False
        return ([envoy_program(), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c", config],
                {}, False)

    def hostward(self, profile, settings):
        place = self.place
        upstream = {"tcp": f"http://127.0.0.1:{place.app}", "unix": f"http+unix:{place.http}",
                    "uwsgi": f"uwsgi+unix:{place.uwsgi}"}[profile.upstream]
        env = {"ALLOWED_HOSTS": ",".join(HOSTS), "UPSTREAM": upstream, "LISTEN": f"127.0.0.1:{self.ports['http']}",
               "ADMIN_LISTEN": f"127.0.0.1:{free_port()}", "THREADS": "1", "TASK_IP": "off", "LOG_FORMAT": "json",
               "MAX_CONNECTIONS": str(IDLE + 1024 if profile.idle else 2048),
               # As nginx. By default it is 1.5 s, and it may take longer until its next turn.
               "UPSTREAM_IDLE_TIMEOUT": "60s"}
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
