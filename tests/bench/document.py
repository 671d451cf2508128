"""What was measured, as a page of tables and a picture. Nothing here measures, and no figure of a table is typed in by
hand; what a profiler said stands in WHY, with its date."""

import contextlib
import itertools
import json
import statistics

from figures import CONTROLLED, NAMES, added, against, interval, median_of, middle, of_mib, spread, tail_against
from picture import picture

LEAST_ROUNDS = 5


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pair(of):
    """A figure and its interval; one that was counted has none."""
    return f"**{of[0]:.2f}**", f"{of[1]:.2f}–{of[2]:.2f}" if len(of) == 3 else "counted"


def section(name, found):
    """A profile's table, and by what to judge it."""
    rounds = found["rounds"]
    there = [peer for peer in NAMES if peer in rounds[0] and peer != "control"]

    def over(peer, key):
        return statistics.median(middle(of[peer], key) for of in rounds)

    def cells(key, unit):
        of_peers = ([value / unit for value in median_of(found, key, peer)] for peer in there)
        return [[NAMES[peer], f"{its[0]:.2f}", f"{its[1]:.2f}–{its[2]:.2f}"] for peer, its in zip(there, of_peers)]

    if name == "latency":
        head = ["", "load", "p50 added, µs", "p99 added, µs", "95 %", "p99 in all, µs"]
        rows = []
        for load, peer in itertools.product(found["rates"], there):
            half, tail = ([f"{value:.0f}" for value in interval(added(found, peer, load, quantile))]
                          for quantile in ("0.5", "0.99"))
            whole = statistics.median(turn[load]["0.99"] for of in rounds for turn in of[peer])
            its = ["", "", ""] if peer == "direct" else [half[0], tail[0], f"{tail[1]}–{tail[2]}"]
            rows.append([NAMES[peer], f"{float(load):.0%}", *its, f"{whole:.0f}"])
        figure, its_interval = pair(tail_against(found))
        rates = " and ".join(f"{rate:,.0f}" for rate in found["rates"].values())
        text = table(head, rows) + (
            f"\n\nThe rates are those that keep nginx's CPU busy for that share of the time, {rates} requests a "
            f"second, over 64 connections. hostward's added p99 at 60 % against the better one's of nginx and "
            f"HAProxy: {figure} ({its_interval}).")
    elif name == "memory":
        both = zip(cells("start_kib", 1024), cells("connection_kib", 1))
        text = table(["", "MiB at the start", "95 %", "KiB for each idle connection", "95 %"],
                     [start + connection[1:] for start, connection in both])
    elif name == "start":
        text = table(["", "ms", "95 %"], cells("ms", 1))
    else:
        base = CONTROLLED.get(name)
        head = ["", "CPU µs a request", f"against {NAMES[base]}" if base else "hostward against it", "95 %",
                "requests a second", "its CPU busy", "all processes, µs"]
        rows = []
        for peer in there:
            cells = [NAMES[peer], f"{over(peer, 'cpu_us'):.2f}", "", "", f"{over(peer, 'per_second'):,.0f}",
                     f"{over(peer, 'busy'):.0%}", f"{over(peer, 'all_us'):.2f}"]
            if peer == "direct":
                cells[1] = cells[5] = ""
            elif peer not in ("hostward", base):
                cells[2:4] = pair(against(found, base, peer) if base else against(found, peer))
            rows.append(cells)
        text = table(head, rows)
    if name == "growth":
        text += GROWTH
    judged = f"{len(rounds)} rounds"
    if name not in ("memory", "start"):
        judged += f" of {found['seconds']:g} s; the same against itself: up to {spread(name, found):.1%} apart"
    return (f"{text}\n\n{judged}; other processes took {found['others']:.1%} of the CPUs, the hypervisor "
            f"{found['steal']:.1%}; {found['date']}, hostward {found['build']['digest']}.\n")


GROWTH = """

Every host list has www.example.com last, which is asked for. Lists end where Linux ends them: a setting is one variable
or argument, which holds 128 KiB. That is 10,000 names of 12 characters, or 32,000 of 3; 100,000 do not fit."""
# What hostward must reach and what it aims at: profile, words, must, goal, the figure.
GOALS = [
    ("browser", "CPU a request, browser, against nginx", 0.95, 0.80, lambda found: against(found, "nginx")),
    ("browser", "the same against HAProxy", 0.90, 0.75, lambda found: against(found, "haproxy")),
    ("browser", "the same against Envoy", 0.30, 0.25, lambda found: against(found, "envoy")),
    ("browser", "the same against Caddy", 0.15, 0.10, lambda found: against(found, "caddy")),
    ("browser", "the same against the TCP relay", 1.5, 1.3, lambda found: against(found, "relay")),
    ("64k", "64 KiB answers against nginx", 0.60, 0.50, lambda found: against(found, "nginx")),
    ("1m", "1 MiB answers against nginx", 0.40, 0.30, lambda found: against(found, "nginx")),
    ("64k", "64 KiB answers against nginx with 16 buffers of 64 KiB", None, None,
     lambda found: against(found, "tuned")),
    ("1m", "1 MiB answers against the same", None, None, lambda found: against(found, "tuned")),
    ("h2c", "HTTP/2 listener against nginx", 0.70, 0.50, lambda found: against(found, "nginx")),
    ("uwsgi", "uwsgi over a Unix socket against nginx", 1.0, 0.85, lambda found: against(found, "nginx")),
    ("latency", "added p99 at 60 % load against the better of nginx and HAProxy", 1.0, 0.8, tail_against),
    ("memory", "memory at the start, MiB", 5, 3, of_mib),
    ("memory", "an idle connection, KiB", 4, 1, lambda found: median_of(found, "connection_kib")),
    ("start", "start to first accept, ms", 10, 3, lambda found: median_of(found, "ms")),
    ("gates", "allocations a request, browser", 12, 4, lambda counted: (counted["browser"]["allocations"],)),
    ("gates", "the same with a bare head", None, None, lambda counted: (counted["bare"]["allocations"],)),
    ("growth", "1 → 10,000 allowed hosts", 1.03, None, lambda found: against(found, "base", "hosts")),
    ("growth", "1 → 32,000 allowed hosts (100,000 do not fit into a setting)", 1.03, None,
     lambda found: against(found, "base", "most")),
    ("growth", "9 → 5,000 trusted networks", 1.03, None, lambda found: against(found, "base", "cidrs")),
    ("growth", "0 → 10,000 idle connections beside the load", 1.05, None,
     lambda found: against(found, "base", "idle")),
    ("workers", "the work of two workers, by their CPU time", -1.8, None,
     lambda found: tuple(-2 / its for its in against(found, "one", "two"))),
]


def goals(profiles):
    """A figure below zero stands for one that must not be smaller; one without bounds is there to be known."""
    def bound(value):
        return "" if value is None else f"≤ {value:g}" if value > 0 else f"≥ {-value:g}"

    rows = []
    for name, words, must, goal, figure in GOALS:
        cells = [words, bound(must), bound(goal), "", "", "no result"]
        with contextlib.suppress(KeyError):
            its = figure(profiles[name])
            cells[3:5] = pair((abs(its[0]), *sorted(map(abs, its[1:]))))
            if must is None:
                cells[5] = ""
            elif its[0] > must:
                cells[5] = "**not met**"
            else:
                cells[5] = "met" if goal is None else "goal met" if its[0] <= goal else "must met, goal not"
        rows.append(cells)
    return table(["hostward", "must", "goal", "measured", "95 %", "met or not"], rows)


def builds(profiles):
    """Which profiles were measured with which build of hostward, in words, where there are several."""
    found = {}
    for name, its in profiles.items():
        found.setdefault(its["build"]["digest"], []).append(name)
    return "; ".join(f"{build}: {', '.join(names)}" for build, names in found.items()) if len(found) > 1 else ""


def unpublishable(results):
    """Why a page of these results would claim what isn't known, or nothing."""
    profiles = results.kept["profiles"]
    if not profiles:
        return "nothing has been measured on this machine"
    if builds(profiles):
        return f"several builds of hostward were measured: {builds(profiles)}"
    hasty = [name for name, found in profiles.items() if len(found["rounds"]) < LEAST_ROUNDS]
    if hasty:
        return f"an interval over fewer than {LEAST_ROUNDS} rounds says little: {', '.join(hasty)}"
    commits = {found["build"]["commit"] for found in profiles.values()}
    return next((f"hostward was built from {commit}" for commit in commits if not commit.isalnum()), None)


def write(results, folder, order):
    """performance.md and its picture."""
    here, kept, unreadable = (results.kept[part] for part in ("machine", "profiles", "unreadable"))
    profiles = {name: kept[name] for name in order if name in kept}
    dates = sorted(found["date"] for found in profiles.values())
    versions = {}
    for found in profiles.values():
        for name, its in found["versions"].items():
            versions.setdefault(name, set()).add(its)
    text = [
        "# Performance",
        "Made by `tests/bench/run`, which measures, and `tests/bench/run --publish`, which writes this page from what "
        "was measured. [tests/bench](../tests/bench) has the proxies' settings.",
        table(["measured", ""], [
            ["when", " to ".join(dict.fromkeys((dates[0], dates[-1])))],
            ["machine", f"{here['cpus']} CPUs ({here['cpu']}{', a virtual machine' if here['virtual'] else ''}), "
                        f"{here['memory_gib']} GiB, {here['system']}, Linux {here['kernel'].split('-')[0]}"],
            ["network", f"loopback, with {here['congestion']} for TCP's congestion control"],
            *[[NAMES[name], ", ".join(sorted(its))] for name, its in versions.items()]]),
    ]
    if builds(profiles):
        text.append(f"**Several builds of hostward were measured:** {builds(profiles)}.")
    absent = [f"`{name}` ({unreadable.get(name, 'not measured')})" for name in order if name not in profiles]
    if absent:
        text.append(f"**There is no result for** {', '.join(absent)}.")
    with open("tests/gates/expected.json") as file:
        counted = json.load(file)
    text += [
        "What can be compared are ratios of what one run measured. CPU times change from machine to machine, and "
        "requests a second say more about the generator, which had "
        + ("one CPU for itself" if here["cpus"] > 2 else "to share a CPU with the app")
        + ". A ratio below 1 says that hostward needs less.",
        "The bounds are what this project set itself.",
        goals({**profiles, "gates": counted["per request"]}),
        "Judged by the median: where a bound lies within the interval, another run may judge otherwise.",
        "![CPU time a request by proxy and profile, and added latency](performance.svg)",
        WHY,
        HOW,
        REPEAT,
        "## What a request needs, counted",
        table(["", "instructions", "allocations", "system calls"], [
            [name, f"{its['instructions']:,}", f"{its['allocations']:.0f}", f"{its['system calls']:.0f}"]
            for name, its in counted["per request"].items()]),
        f"Instructions are those in user space, with {counted['made with']}. `tests/gates/run` counts with valgrind "
        "and strace, and CI fails where a figure has become more than 3 % worse than in "
        "[expected.json](../tests/gates/expected.json), which this table is taken from. These kinds of request are the "
        "gates' own: `browser` has 20 fields here too, and all come one after the other on one connection.",
    ]
    for name, found in profiles.items():
        text += [f"## `{name}`: {found['title']}", section(name, found)]
    with open(f"{folder}/performance.md", "w") as file:
        file.write("\n\n".join(part.strip("\n") for part in text) + "\n")
    with open(f"{folder}/performance.svg", "w") as file:
        file.write(picture(profiles))


WHY = """\
## What falls short of a goal, and why

What `perf record -e cpu-clock -p PID -- sleep 4` said of the same proxies under the same loads on 2026-11-27, with the
image's program, of which all figures of that day are (before 04:14 UTC it kept idle connections for 1.5 s, and its turns
came round within 1.1 s); and what was tried:

* **The TCP relay, nginx, HAProxy.** Of the 22.5 µs that a browser's request took, 80 % were the kernel's: to receive,
  to send and to wake the app's CPU, for two connections. Of the relay's 15.5 µs, 98 % were. 1.3 times that leaves 2.1
  µs for all else, which takes 4.5 µs (nginx 6.1 µs, HAProxy 8.7 µs). What made it less: no hyper for plain requests,
  fields kept as lines, one write for a head and a small body, a program compiled with counts of what requests run
  through and linked in that order (17 % fewer instructions), a log that is written in pieces of 8 KiB. What did not:
  names compared as 64-bit words, optimising for size, other orders of the functions.
* **Envoy.** 58 % of its 48.4 µs were its own, and how long those take depends on how much of a shared machine's caches
  it has: the day before, on such a machine with less to spare, it took 84 µs, and hostward 0.28 of that. On a third
  one it took 85 µs, and half an hour later 62; hostward, built from 648faa52ca15, 0.26 and 0.33 of that: 21.1 and
  20.3 µs. Here 0.3 of it would be less than the relay takes, which does nothing.
* **1 MiB answers.** 95 % were the kernel's: `splice` moves pages from one socket to the other, and BBR, where the
  kernel has it for congestion control, sends them by timers. Pipes of 1 MiB, pieces of 48 and 62 KiB and
  `SPLICE_F_MORE` were not better.
* **HTTP/2.** 42 % of the time was in user space, more than twice the share of HTTP/1. hyper serves it there,
  with fields in maps and a task for each request; which part of it costs most was not looked into.
* **uwsgi.** 80 % were the kernel's: the protocol has a connection for each request.
* **Latency.** At 60 % load the relay's added p99 is nine tenths of nginx's: the goal lies below it.
* **Memory.** By `/proc/PID/smaps` after a start with few settings, 3.2 of 3.8 MiB are the program's own file, all but
  0.25 MiB of it as it is on disk: the kernel may drop that, and containers on one host share it.
* **Allocations.** The answer's fields are still kept as a map. Nothing further was tried."""
REPEAT = """\
## To repeat it

In a checkout that has this page, with what the first lines of [tests/bench/run](../tests/bench/run) name. What is
measured is a release build, unless HOSTWARD names another program, such as the image's:

```
tests/bench/run              # everything: an hour and a half
tests/bench/run browser tls  # some profiles
tests/bench/run --publish    # writes this page
tests/gates/run              # what a request needs, counted
```"""
HOW = """\
## How it is measured

Every proxy has one worker, pinned to a CPU of its own, apart from the app and the generator; an allow-list of hosts
and a refusal for others; `X-Forwarded-For`, `-Proto`, `-Port`, `-Host`, `X-Real-IP` and `X-Request-Id`; an access log
in JSON with the same content, into a file in memory; and connections to the app that are kept, by hostward for 60 s
as by nginx: its default of 1.5 s is shorter than the wait for its next turn can be. Before anything is measured, a
request and a refused one check this. hostward's metrics are on besides. The TCP relay does nothing of this: it is the
floor, and one connection to the app for each of the client's is a luxury that no proxy has.

CPU time is the kernel's account of the proxy's processes, and requests are counted by the app. A round starts all
proxies afresh; then they take turns of a tenth of a second, forwards and backwards, so that a machine that is slow for
a second is slow for all. A ratio is the median of its turns' and then of the rounds', its interval a bootstrap over
rounds. nginx takes part twice. Where the interval of nginx against nginx reaches farther than 10 % from 1 there is no
result.

Latency is that of an open loop: requests are due at random times, whether or not earlier ones were answered, and
latency counts from when they were due. The rates are the same for everybody. Turns are as short, and there are four
times as many rounds; a round's figure is the median of its turns', and an interval is over rounds. The proxy, the app
and the generator have real-time priority, or the tail would be made of the kernel's slices of some milliseconds. It is
measured again, and so is the start, while other processes take more than 3 % of the CPUs. "Added" is what is left after
that of the app without a proxy, at the same rate. Memory is the proportional set size of all of a proxy's processes;
what the kernel holds for sockets is not in it. The start is timed from before the fork."""
