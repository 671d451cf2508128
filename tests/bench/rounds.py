"""CPU time for a request, in rounds of turns."""

import contextlib
import json
import re
import signal
import subprocess
import time

from figures import NAMES, middle
from profiles import HOSTS, IDLE, TUNED
from place import LOAD_CPU, Unreadable, WORK, cpu_ns
from proxy import Proxy, missing

# How long a proxy has the machine at a time, and how long before that it may get going again. Where another machine
# has the other half of a core, all that runs here takes up to twice the CPU time, for tenths of seconds or for minutes:
# many short turns tell more than a few long ones.
TURN, SETTLE = 0.1, 0.03
WARM_UP = 0.8


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
            said, _ = place.spawn(argv + ["-n1000"], {LOAD_CPU}, stdout=subprocess.PIPE, text=True).communicate()
            if "status codes: 1000 2xx" not in said:
                raise Unreadable(f"h2load says:\n{said[-1500:]}")
            argv.append("-D3600")
        else:
            argv = [f"{WORK}/load", "websocket", str(port), str(profile.connections)]
        self.process = place.spawn(argv, {LOAD_CPU}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

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
    with place.spawn(argv, {LOAD_CPU}, stdout=subprocess.PIPE, text=True) as holder:
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
        if self.name != "direct" and cpu < took / 100:
            raise Unreadable(f"{self.name} ran for {cpu / took:.1%} of the time: somebody else has answered")
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


def proxies_of(place, profile):
    absent = missing()
    found = {peer: Proxy(peer, place, profile) for peer in profile.peers if peer not in absent}
    if "tuned" in found:
        found["tuned"] = Proxy("nginx", place, profile, settings={"BUFFERS": TUNED})
    return {**found, "control": Proxy("nginx", place, profile)}


def measure(proxies, rounds, seconds):
    """CPU time, in `rounds` of `seconds`; `proxies` makes them anew."""
    kept = []
    for number in range(rounds):
        kept.append(one_round(proxies(), seconds))
        print(f"  round {number + 1}: " + "  ".join(
            f"{NAMES[name]} {middle(turns, 'cpu_us'):.2f}" for name, turns in kept[-1].items()
            if name != "direct"), flush=True)
    return {"rounds": kept}
