"""What has been measured on this machine, and the figures in it."""

import json
import os
import platform
import random
import statistics
import time

NAMES = {
    "nginx": "nginx", "control": "the same again", "haproxy": "HAProxy", "tuned": "nginx, 16 buffers of 64 KiB",
    "hostward": "hostward", "envoy": "Envoy", "caddy": "Caddy", "relay": "TCP relay", "direct": "no proxy",
    "base": "1 host, 9 trusted networks", "hosts": "10,000 hosts of 12 characters",
    "most": "32,000 hosts of 3 characters", "cidrs": "5,000 trusted networks",
    "idle": "10,000 idle connections", "one": "one worker", "two": "two workers", "wrk": "wrk", "h2load": "h2load"}
# Whom the second measurement of the same, which is called `control`, is a repetition of.
CONTROLLED = {"growth": "base", "workers": "one"}
STUDIES = ("latency", "memory", "start", "growth", "workers")


def machine():
    def of(path, key):
        with open(path) as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")

    with open("/proc/sys/net/ipv4/tcp_congestion_control") as control:
        congestion = control.read().strip()
    return {"congestion": congestion, "cpu": of("/proc/cpuinfo", "model name"), "cpus": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "system": platform.freedesktop_os_release()["PRETTY_NAME"],
            "memory_gib": round(int(of("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
            "virtual": "hypervisor" in of("/proc/cpuinfo", "flags")}


class Results:
    """What has been measured on this machine so far; a profile's last run counts."""

    def __init__(self, path):
        self.path, self.kept = path, {"machine": machine(), "profiles": {}, "unreadable": {}}
        try:
            with open(path) as file:
                before = json.load(file)
        except FileNotFoundError:
            return
        if before["machine"] == self.kept["machine"]:
            self.kept.update(before)
        else:
            print(f"{path} is of another machine: begun anew")

    def put(self, name, found, versions, build):
        found.update(date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), versions=versions, build=build)
        self.kept["profiles"][name] = found
        self.kept["unreadable"].pop(name, None)
        self.write()

    def refuse(self, name, why):
        self.kept["unreadable"][name] = f"{why}; {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"
        self.write()

    def write(self):
        with open(self.path + ".new", "w") as file:
            json.dump(self.kept, file)
        os.replace(self.path + ".new", self.path)


def middle(turns, key):
    return statistics.median(turn[key] for turn in turns)


def interval(values):
    """The median and its 95 % interval, by bootstrap."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(4000))
    return statistics.median(values), medians[100], medians[3899]


def ratio(of_round, ours, theirs):
    """CPU time for a request, turn by turn; what is measured twice counts as the mean of both."""
    def cost(peer, turn):
        twice = peer in ("nginx", *CONTROLLED.values()) and ours != "control"
        return statistics.mean(of_round[name][turn]["cpu_us"] for name in ([peer, "control"] if twice else [peer]))

    return statistics.median(cost(ours, turn) / cost(theirs, turn) for turn in range(len(of_round[ours])))


def against(found, theirs, ours="hostward"):
    """The ratio of two that were measured in the same rounds, with its interval."""
    return interval([ratio(of_round, ours, theirs) for of_round in found["rounds"]])


def added(found, name, load, quantile, twice=True):
    """Latency through a proxy, round by round, less what it is without one, in microseconds. nginx's is the mean of
    both, unless the two are to be told apart."""
    def of(name, of_round):
        return statistics.median(turn[load][quantile] for turn in of_round[name])

    names = ("nginx", "control") if name == "nginx" and twice else (name,)
    return [statistics.mean(of(name, of_round) for name in names) - of("direct", of_round)
            for of_round in found["rounds"]]


def tail_against(found, load="0.6", quantile="0.99"):
    """hostward's added latency in units of the better one's of nginx and HAProxy."""
    better = min((name for name in ("nginx", "haproxy") if name in found["rounds"][0]),
                 key=lambda name: statistics.median(added(found, name, load, quantile)))
    pairs = zip(added(found, "hostward", load, quantile), added(found, better, load, quantile))
    return interval([ours / theirs for ours, theirs in pairs])


def spread(name, found):
    """How far the same may be from itself: the farther end of the 95 % interval of what ought to be 1."""
    if name in ("memory", "start"):
        return None
    if name == "latency":
        once, again = (added(found, its, "0.6", "0.99", twice=False) for its in ("nginx", "control"))
        same = interval([a / b for a, b in zip(again, once)])
    else:
        same = against(found, CONTROLLED.get(name, "nginx"), "control")
    return max(1 - same[1], same[2] - 1)


def median_of(found, key, peer="hostward"):
    return interval([of_round[peer][key] for of_round in found["rounds"]])


def of_mib(found):
    return tuple(kib / 1024 for kib in median_of(found, "start_kib"))
