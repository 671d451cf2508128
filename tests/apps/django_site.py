"""A Django site as it stands behind a load balancer: strict ALLOWED_HOSTS, nothing that knows of health checks.

ALLOWED_HOSTS names another host, DEBUG=1 turns DEBUG on, SSL_REDIRECT=1 turns SECURE_SSL_REDIRECT on,
FORWARDED_HOST=1 turns USE_X_FORWARDED_HOST on, and DISBELIEVE=1 leaves SECURE_PROXY_SSL_HEADER out.
"""

import hashlib
import os
import tempfile
import time

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from witness import Wsgi

settings.configure(
    DEBUG="DEBUG" in os.environ,
    ALLOWED_HOSTS=[os.environ.get("ALLOWED_HOSTS", "www.example.com")],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests alone",
    SECURE_SSL_REDIRECT="SSL_REDIRECT" in os.environ,
    SECURE_PROXY_SSL_HEADER=None if "DISBELIEVE" in os.environ else ("HTTP_X_FORWARDED_PROTO", "https"),
    USE_X_FORWARDED_HOST="FORWARDED_HOST" in os.environ,
    CSRF_COOKIE_SECURE=True,
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
)
django.setup()


def home(request):
    """What Django makes of the Host and of the forwarding fields."""
    return JsonResponse({"host": request.get_host(), "url": request.build_absolute_uri()})


def form(request):
    """GET gives the token that a POST must carry."""
    if request.method == "POST":
        return JsonResponse({"saved": request.POST["note"]})
    return JsonResponse({"token": get_token(request)})


@csrf_exempt
def note(request):
    """Takes a POST from anybody."""
    return JsonResponse({"saved": request.body.decode(), "length": request.META.get("CONTENT_LENGTH")})


def meta(request):
    """Every variable that is a text, and the path that Django makes of them."""
    return JsonResponse({"path": request.path, "meta": {k: v for k, v in request.META.items() if isinstance(v, str)}})


@csrf_exempt
def upload(request):
    """What came, without keeping it."""
    digest, size = hashlib.sha256(), 0
    while part := request.read(65536):
        digest.update(part)
        size += len(part)
    length = request.META.get("CONTENT_LENGTH")
    return JsonResponse({"size": size, "sha256": digest.hexdigest(), "length": length})


def stream(request):
    """Two parts; the second is made once the file that GATE_FILE names is there. ?length= announces a length."""

    def parts():
        yield b"first\n"
        deadline = time.monotonic() + 20
        while not os.path.exists(os.environ["GATE_FILE"]) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield b"second\n"

    response = StreamingHttpResponse(parts(), content_type="text/plain")
    if "length" in request.GET:
        response["Content-Length"] = request.GET["length"]
    return response


def noise(request):
    return StreamingHttpResponse((bytes([part]) * (1 << 20) for part in range(20)), content_type="application/octet-stream")


def download(request):
    """Five MiB of a file, which the server may send without Django."""
    file = tempfile.TemporaryFile()
    file.write(bytes(range(256)) * 4 * 1024 * 5)
    file.seek(0)
    return FileResponse(file, content_type="application/octet-stream")


urlpatterns = [
    path("", home),
    path("form", form),
    path("note", note),
    path("meta", meta),
    path("meta/<path:rest>", lambda request, rest: meta(request)),
    path("upload", upload),
    path("stream", stream),
    path("noise", noise),
    path("download", download),
]

application = Wsgi(get_wsgi_application())
