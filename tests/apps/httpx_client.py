"""Usage: httpx_client.py PORT

Asks https://www.example.com, as it is at 127.0.0.1:PORT, over HTTP/2; doesn't ask who it is. Prints what came as JSON.
"""

import asyncio
import json
import sys

import httpx

NOTE = {"note": "grüß dich", "numbers": list(range(5000))}


async def parts():
    """A body whose length nobody knows beforehand."""
    for part in (b"one,", b"two,", b"three"):
        yield part


async def main():
    url = f"https://127.0.0.1:{sys.argv[1]}"
    headers = {"Host": "www.example.com"}
    async with httpx.AsyncClient(http2=True, verify=False, trust_env=False, timeout=20) as client:

        async def ask(method, path, **more):
            fields = {**headers, **more.pop("headers", {})}
            extensions = {"sni_hostname": "www.example.com"}
            return await client.request(method, url + path, headers=fields, extensions=extensions, **more)

        home = await ask("GET", "/")
        tls = home.extensions["network_stream"].get_extra_info("ssl_object")
        posted = (await ask("POST", "/note", json=NOTE)).json()
        streamed = (await ask("POST", "/note", content=parts())).json()
        texts = [f"note {number}" for number in range(30)]
        at_once = await asyncio.gather(*(ask("POST", "/note", content=text.encode()) for text in texts))
        download = await ask("GET", "/download")
        print(json.dumps({
            "alpn": tls.selected_alpn_protocol(),
            "tls": tls.version(),
            "version": home.http_version,
            "home": home.json(),
            "posted": json.loads(posted["saved"]) == NOTE and int(posted["length"]) == len(posted["saved"].encode()),
            "streamed": streamed,
            "at_once": [answer.json()["saved"] for answer in at_once] == texts,
            "download": download.content == bytes(range(256)) * 4 * 1024 * 5,
            "stranger": (await ask("GET", "/", headers={"Host": "evil.example"})).status_code,
            "versions": sorted({answer.http_version for answer in at_once}),
        }))


asyncio.run(main())
