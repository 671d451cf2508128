"""Equal features, without which a comparison is none."""

import json
import re
import time

from profiles import HOSTS, Profile
from place import Unreadable, ask
from proxy import Proxy, missing


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
