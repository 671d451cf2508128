"""A small Django app, strict about its host. A health check that comes to it directly gets 400."""

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["www.example.com"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for trying it out alone",
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
)
django.setup()


def home(request):
    """What Django makes of the Host and of the forwarding fields."""
    return JsonResponse({"host": request.get_host(), "url": request.build_absolute_uri()})


urlpatterns = [path("", home)]

application = get_wsgi_application()
