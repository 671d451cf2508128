"""A Flask site whose TRUSTED_HOSTS, checked by Werkzeug, admits the host that ALLOWED_HOSTS names.

Before Flask 3.1, trusted_hosts is an attribute of the request's class, checked when the host is read.
"""

import os

import flask

from witness import Wsgi

hosts = [os.environ["ALLOWED_HOSTS"]]


class Request(flask.Request):
    trusted_hosts = hosts


class Site(flask.Flask):
    request_class = Request


site = Site(__name__)
site.config["TRUSTED_HOSTS"] = hosts


@site.get("/")
def home():
    return {"site": "flask", "host": flask.request.host}


application = Wsgi(site)
