"""A Flask site whose TRUSTED_HOSTS, checked by Werkzeug, admits the host that ALLOWED_HOSTS names."""

import os

from flask import Flask

from witness import Wsgi

site = Flask(__name__)
site.config["TRUSTED_HOSTS"] = [os.environ["ALLOWED_HOSTS"]]


@site.get("/")
def home():
    return {"site": "flask"}


application = Wsgi(site)
