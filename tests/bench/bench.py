"""Measures proxies beside each other; see `run`, which prepares what this needs.

What is compared is the CPU time that a proxy takes for a request, by the kernel's accounting (its process clock), while
a closed loop keeps it busy: requests per second would mostly measure the generator.

Each round starts every proxy afresh, on the same CPU. A virtual machine is a tenth slower for some seconds and then
fast again, so they take turns of a tenth of a second: one generator goes on, all others are stopped. Every other turn
goes through them in reverse. A ratio is formed turn by turn, a round's is the median of its turns', and the interval is
over rounds. Two nginx take part: how much these two differ is what a difference between others may be without meaning
anything.

The parts, each of which uses only those before it: `profiles`, what is sent to whom; `place`, CPUs and processes;
`proxy`, how a proxy is configured and started; `features`, that all do the same; `figures`, what was measured, and
its ratios and intervals; `rounds`, CPU time; `studies`, what is measured otherwise; `picture` and `document`, the page;
and this, the command line.
"""

import argparse
import os
import resource
import signal
import sys

import document
from figures import NAMES, Results, spread
from profiles import IDLE, PROFILES
from place import CPUS, LOAD_CPU, Place, Unreadable, WORK, Watch
from proxy import build, missing, versions
from features import check_all
from rounds import measure, proxies_of
from studies import STUDIES

DESCRIPTORS = IDLE + 4096
# Above this, what is measured says more about the machine than about the proxies.
MOST_SPREAD = 0.10


def main():
    titles = {name: profile.title for name, profile in PROFILES.items()}
    titles.update({name: title for name, (title, _) in STUDIES.items()})
    epilog = "profiles:\n" + "\n".join(f"  {name:<10} {title}" for name, title in titles.items())
    parser = argparse.ArgumentParser(prog="tests/bench/run", epilog=epilog,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="what to measure; everything if none is named")
    parser.add_argument("--quick", action="store_true", help="`browser` alone, in three minutes")
    parser.add_argument("--rounds", type=int, help="how often every proxy is started afresh")
    parser.add_argument("--seconds", type=float, help="for how long each is measured in a round")
    parser.add_argument("--publish", action="store_true", help="measure nothing, and write docs/performance.md")
    asked = parser.parse_args()
    results = Results(f"{WORK}/results.json")
    if asked.publish:
        if why := document.unpublishable(results):
            sys.exit(f"tests/bench/run: nothing is published: {why}")
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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < DESCRIPTORS and {"idle10k", "memory", "growth"} & set(names):
        sys.exit(f"tests/bench/run: needs `ulimit -n {DESCRIPTORS}` for {IDLE:,} idle connections")
    if {"hostward", "nginx"} & set(missing()):
        sys.exit("tests/bench/run: without hostward and nginx there is nothing to compare")
    for name in missing():
        print(f"left out: {NAMES[name]}, which is not installed")

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
                apart = spread(name, found)
                if apart is not None and apart > MOST_SPREAD:
                    raise Unreadable(f"two that are the same are up to {apart:.1%} apart")
            except Unreadable as why:
                unreadable.append(name)
                why = f"{why} (other processes took {watch.shares()['others']:.1%} of the CPUs)"
                print(f"UNREADABLE, no result: {why}", flush=True)
                results.refuse(name, why)
                continue
            found.update(title=titles[name], seconds=seconds, **watch.shares())
            results.put(name, found, versions(), build())
            print(document.section(name, found), flush=True)
    if results.kept["profiles"]:
        document.write(results, WORK, titles)
    if unreadable:
        sys.exit(f"tests/bench/run: no result for {', '.join(unreadable)}")


if __name__ == "__main__":
    main()
