"""A Flask site with ProxyFix exactly as Flask's documentation shows it, and what it makes of a request's origin.

TWO_PROXIES=1 is the load balancer and hostward.
"""

import os

from flask import Flask, request, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)


@app.get("/")
def home():
    return {
        "address": request.remote_addr,
        "scheme": request.scheme,
        "host": request.host,
        "prefix": request.script_root,
        "path": request.path,
        "url": url_for("page", _external=True),
    }


@app.get("/page")
def page():
    return {}


if "TWO_PROXIES" in os.environ:
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=2, x_proto=1, x_host=1, x_port=1, x_prefix=1)
else:
    app.wsgi_app = ProxyFix(
        app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1
    )
