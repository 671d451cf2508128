"""A Django site as it stands behind a load balancer: strict ALLOWED_HOSTS, nothing that knows of health checks.

SSL_REDIRECT=1 turns SECURE_SSL_REDIRECT on, FORWARDED_HOST=1 turns USE_X_FORWARDED_HOST on.
"""

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.middleware.csrf import get_token
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from witness import Wsgi

settings.configure(
    ALLOWED_HOSTS=["www.example.com"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests alone",
    SECURE_SSL_REDIRECT="SSL_REDIRECT" in os.environ,
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
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
    return JsonResponse({"saved": request.body.decode()})


urlpatterns = [path("", home), path("form", form), path("note", note)]

application = Wsgi(get_wsgi_application())
