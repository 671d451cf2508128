"""What is measured otherwise than by profiles: latency, memory, start, growth, workers."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import statistics
import string
import subprocess
import time

from figures import NAMES
from profiles import HOSTS, IDLE, NO_RELAY, PROFILES, PROXIES
from place import CPUS, LOAD_CPU, Unreadable, WORK, Watch, await_port, end, proportional_kib
from proxy import Proxy, missing
from rounds import idle_connections, measure

CIDRS = 5_000
# Linux takes 128 KiB for a variable or an argument, and a setting is one of them: so many names of usual length fit,
# and so many of 3 characters; 100,000 don't.
MANY_HOSTS, MOST_HOSTS = 10_000, 32_000
LATENCY_PEERS = ("direct", "nginx", "hostward", "haproxy", "relay", "control")
# Latency and start are repeated while other processes take more of the CPUs.
MOST_OTHERS, TRIES = 0.03, 10
LATENCY_TURN, LOADS = 0.1, ("0.3", "0.6")
# A tail needs so many rounds where CPU time needs one.
LATENCY_ROUNDS = 4
# So often are the rates looked for.
SEARCHES = 5
# More requests a second than a generator makes.
MOST_RATE = 60_000


def variants(place):
    """hostward with little and with much to look through, and beside connections that are idle."""
    def ours(names=(), idle=0, **settings):
        settings["ALLOWED_HOSTS"] = ",".join([*names, HOSTS[0]])
        return Proxy("hostward", place, dataclasses.replace(PROFILES["browser"], idle=idle), settings=settings)

    networks = [f"10.{at // 128}.{at % 128 * 2}.0/24" for at in range(CIDRS)]
    names = [f"h{at:04}.ex.com" for at in range(MANY_HOSTS)]
    letters = string.ascii_lowercase
    short = map("".join, itertools.product(letters, letters + string.digits, letters + string.digits))
    return {"base": ours(), "hosts": ours(names), "most": ours(itertools.islice(short, MOST_HOSTS)),
            "cidrs": ours(TRUSTED_PROXIES=",".join(networks + ["127.0.0.0/8"])), "idle": ours(idle=IDLE),
            "control": ours()}


def workers(place):
    def ours(threads):
        return Proxy("hostward", place, PROFILES["browser"], cpus=set(CPUS[:2]), settings={"THREADS": str(threads)})

    return {"one": ours(1), "two": ours(2), "control": ours(1)}


def measure_latency(place, rounds, seconds):
    """An open loop at the rates that keep nginx's CPU busy for these shares of the time, the same for everybody. Many
    short turns, as with CPU time: one in which the machine was slow has queues that no proxy made. And many rounds: two
    nginx differ by some percent in what they need, and by more in how long their queues get."""
    with real_time(place):
        rates, kept = rates_of_nginx(place), []
        for number in range(rounds * LATENCY_ROUNDS):
            kept.append(latency_round(place, rates, round(seconds / LATENCY_TURN)))
            print(f"  round {number + 1}, p99 at {rates['0.6']:,.0f} requests a second: " + "  ".join(
                f"{NAMES[name]} {statistics.median(turn['0.6']['0.99'] for turn in turns):.0f}"
                for name, turns in kept[-1].items()), flush=True)
    return {"rounds": kept, "rates": rates}


def latency_round(place, rates, turns):
    """Everybody's turns, by name."""
    proxies = {name: Proxy("nginx" if name == "control" else name, place, PROFILES["browser"])
               for name in LATENCY_PEERS if name not in missing()}
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(proxy) for name, proxy in proxies.items()}
        of_round = {name: [] for name in running}
        for turn in range(turns):
            order = list(running.items())[::1 if turn % 2 == 0 else -1]

            def everybody():
                return {name: {load: quantiles(place, proxy, rates[load], turn) for load in LOADS}
                        for name, proxy in order}

            for name, its in undisturbed(place, running.values(), everybody).items():
                of_round[name].append(its)
    return of_round


@contextlib.contextmanager
def real_time(place):
    """The app, and what is started meanwhile, get a CPU when they want it. Else a tail is made of the kernel's slices,
    which are longer than most requests take."""
    def of(policy, priority):
        for pid in (0, place.origin.pid):
            os.sched_setscheduler(pid, policy, os.sched_param(priority))

    try:
        of(os.SCHED_FIFO, 1)
    except PermissionError:
        raise Unreadable("real-time priority needs CAP_SYS_NICE") from None
    try:
        yield
    finally:
        of(os.SCHED_OTHER, 0)


def rates_of_nginx(place):
    """Requests a second that keep its CPU busy for the shares in LOADS: the median of some that were just started."""
    found = []
    for _ in range(SEARCHES):
        with Proxy("nginx", place, PROFILES["browser"]) as nginx:
            found.append([rate_for(place, nginx, float(load)) for load in LOADS])
    return dict(zip(LOADS, map(statistics.median, zip(*found))))


def rate_for(place, proxy, load):
    """Requests a second that keep its CPU busy for this share of the time, by halving."""
    def busy(rate):
        before = proxy.cpu(), time.monotonic_ns()
        quantiles(place, proxy, rate, seed=0)
        return (proxy.cpu() - before[0]) / (time.monotonic_ns() - before[1])

    low, high = 0, MOST_RATE
    while high - low > MOST_RATE / 100:
        rate = (low + high) / 2
        if statistics.median(busy(rate) for _ in range(5)) < load:
            low = rate
        else:
            high = rate
    return (low + high) / 2


def undisturbed(place, running, measurement):
    """A tail, and a start, are made by whatever else runs: the measurement is repeated until hardly anything does."""
    for _ in range(TRIES):
        watch = Watch(place, running)
        found = measurement()
        others = watch.shares()["others"]
        if others <= MOST_OTHERS:
            return found
        time.sleep(1)
    raise Unreadable(f"other processes take {others:.0%} of the CPUs")


def quantiles(place, proxy, rate, seed):
    argv = [f"{WORK}/load", "open", str(proxy.ports["http"]), "64", str(rate), str(LATENCY_TURN), str(seed),
            place.request]
    load = place.spawn(argv, {LOAD_CPU}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, wrong = load.communicate(timeout=30)
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
            f"{NAMES[name]} {its['start_kib'] / 1024:.1f} MiB + {its['connection_kib']:.2f} KiB"
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
    "start": ("from start to first accept",
              lambda place, *much: undisturbed(place, (), lambda: measure_start(place, *much))),
    "growth": ("what many hosts, networks and idle connections cost",
               lambda place, *much: measure(lambda: variants(place), *much)),
    "workers": ("two workers", lambda place, *much: measure(lambda: workers(place), *much)),
}
