"""What is measured: requests, and which proxies take part."""

import dataclasses

IDLE = 10_000
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
    "uwsgi": Profile("uwsgi over a Unix socket to the app", "/uwsgi/small", upstream="uwsgi",
                     peers=("nginx", "hostward")),
    "unix": Profile("HTTP over a Unix socket to the app", upstream="unix", peers=NO_RELAY),
    "c1": Profile("1 connection", connections=1),
    "c16": Profile("16 connections", connections=16),
    "c512": Profile("512 connections", connections=512),
    "idle10k": Profile("64 connections beside 10,000 idle ones", idle=IDLE, peers=NO_RELAY),
}


def request_bytes(method, path, fields, body=b""):
    lines = [f"{method} {path} HTTP/1.1"] + [f"{name}: {value}" for name, value in fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
