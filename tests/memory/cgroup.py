"""A memory cgroup for one program, in cgroup v2 or v1."""

import os
import pathlib
import re


class Cgroup:
    """Below this process's own cgroup, or the nearest of its ancestors where one can be made."""

    def __init__(self, limit):
        self.path, reasons = None, []
        for parent, self.v2 in parents():
            path = parent / f"hostward-memory-{os.getpid()}"
            try:
                if self.v2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                    (parent / "cgroup.subtree_control").write_text("+memory")
                path.mkdir()
                self.path = path
                self.write("memory.max" if self.v2 else "memory.limit_in_bytes", limit)
                break
            except OSError as error:
                reasons.append(str(error))
                self.remove()
        if self.path is None:
            raise OSError("; ".join(reasons) or "no memory controller is mounted")
        # A task on Fargate has no swap. In v1 sockets are counted apart, and only where they have a limit.
        for name, value in [("memory.swap.max", 0)] if self.v2 else [
                ("memory.memsw.limit_in_bytes", limit), ("memory.kmem.tcp.limit_in_bytes", 1 << 40)]:
            try:
                self.write(name, value)
            except OSError:
                pass

    def enter(self, command):
        """The command that runs `command` in it, with the file descriptors of a task on Fargate."""
        script = 'echo $$ >"$0/cgroup.procs" && { ulimit -n 65535 2>/dev/null; exec "$@"; }'
        return ["sh", "-c", script, self.path, *command]

    def sample(self):
        """Bytes now: what is needed is everything that is compared with the limit but the page cache, which the kernel takes
        back. The buffers of sockets belong to it in v2 and not in v1."""
        stat = self.counts("memory.stat")
        if self.v2:
            cache = stat["file"] - stat["shmem"]
            total, sockets = self.number("memory.current"), stat["sock"]
            parts = {"process": stat["anon"], "kernel": stat.get("kernel", 0)}
        else:
            cache = stat["total_cache"] - stat.get("total_shmem", 0)
            sockets = self.number("memory.kmem.tcp.usage_in_bytes")
            total = self.number("memory.usage_in_bytes")
            parts = {"process": stat["total_rss"], "kernel": self.number("memory.kmem.usage_in_bytes")}
        return {"needed": total - cache, **parts, "sockets": sockets, "page cache": cache}

    def peak(self):
        """The kernel's own highest figure, page cache included; 0 where the kernel doesn't know it."""
        try:
            return self.number("memory.peak" if self.v2 else "memory.max_usage_in_bytes")
        except OSError:
            return 0

    def kills(self):
        """How often the kernel found no memory to reclaim, and killed for it."""
        if self.v2:
            events = self.counts("memory.events")
            return events["oom"], events["oom_kill"]
        killed = self.counts("memory.oom_control").get("oom_kill", 0)
        return killed, killed

    def remove(self):
        if self.path:
            try:
                self.path.rmdir()
            except OSError:
                pass
        self.path = None

    def write(self, name, value):
        (self.path / name).write_text(str(value))

    def number(self, name):
        return int((self.path / name).read_text())

    def counts(self, name):
        return {key: int(value) for key, value in map(str.split, (self.path / name).read_text().splitlines())}


def parents():
    """Where a child cgroup may be made, nearest first, and whether that is cgroup v2."""
    own = dict(re.findall(r"^\d+:(.*):(.*)$", pathlib.Path("/proc/self/cgroup").read_text(), re.M))
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, system = line.partition(" - ")
        root, point = mount.split()[3:5]
        kind, _, options = system.split(" ", 2)
        point = pathlib.Path(point)
        if kind == "cgroup2" and "memory" in (point / "cgroup.controllers").read_text().split():
            path = own.get("", "/")
        elif kind == "cgroup" and "memory" in options.split(","):
            path = next((path for names, path in own.items() if "memory" in names.split(",")), "/")
        else:
            continue
        below = path.removeprefix(root.rstrip("/")).strip("/")
        places = [point / below, *(point / below).parents]
        yield from ((place, kind == "cgroup2") for place in places if place.is_relative_to(point) and place.is_dir())
