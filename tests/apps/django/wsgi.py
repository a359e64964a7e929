import hashlib
import os
import time

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    # Without DEBUG, Django mails errors to admins and prints nothing.
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["stderr"]},
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests",
)


def hello(request):
    return HttpResponse("hello", content_type="text/plain")


def pid(request):
    return HttpResponse(str(os.getpid()))


def sha(request):
    return HttpResponse("%d %s" % (len(request.body), hashlib.sha256(request.body).hexdigest()))


def gated(request):
    yield "first\n"
    while not os.path.exists(request.GET["gate"]):
        time.sleep(0.005)


def stream(request):
    def pieces():
        yield from gated(request)
        yield "last\n"

    return StreamingHttpResponse(pieces())


def endless(request):
    def pieces():
        while True:
            yield "tick\n"
            time.sleep(0.005)

    return StreamingHttpResponse(pieces())


def fail(request):
    raise RuntimeError("told to fail")


def broken(request):
    def pieces():
        yield from gated(request)
        raise RuntimeError("told to fail")

    return StreamingHttpResponse(pieces())


def cookies(request):
    response = HttpResponse()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", path=None, expires="Thu, 01 Jan 1970 00:00:00 GMT")
    return response


def echo(request, name):
    return HttpResponse("/echo/" + name, headers={"X-Echo": request.META["HTTP_X_NAME"]})


urlpatterns = [
    path("hello", hello),
    path("pid", pid),
    path("sha", sha),
    path("stream", stream),
    path("endless", endless),
    path("fail", fail),
    path("break", broken),
    path("cookies", cookies),
    path("echo/<str:name>", echo),
]
application = get_wsgi_application()
