import hashlib
import os
import time

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], DEBUG=False, ROOT_URLCONF=__name__, SECRET_KEY="for tests")


def hello(request):
    return HttpResponse("hello", content_type="text/plain")


def pid(request):
    return HttpResponse(str(os.getpid()))


def sha(request):
    return HttpResponse("%d %s" % (len(request.body), hashlib.sha256(request.body).hexdigest()))


def stream(request):
    def pieces():
        yield "first\n"
        while not os.path.exists(request.GET["gate"]):
            time.sleep(0.005)
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
        yield "first\n"
        raise RuntimeError("told to fail")

    return StreamingHttpResponse(pieces())


def cookies(request):
    response = HttpResponse()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", path=None, expires="Thu, 01 Jan 2032 00:00:00 GMT")
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
