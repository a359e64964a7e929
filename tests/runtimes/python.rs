//! Python: WSGI and ASGI.

use super::checks::{App, Exceptions, app};
use super::fixture::python;

#[test]
fn python_serves_a_bare_wsgi_app() {
    app("wsgi", python(&["sys"])).check();
}

#[test]
fn python_serves_flask() {
    App { exceptions: Exceptions::Framework, ..app("flask", python(&["flask"])) }.check();
}

#[test]
fn python_serves_django() {
    App { exceptions: Exceptions::Framework, ..app("django", python(&["django"])) }.check();
}

#[test]
fn python_serves_a_bare_asgi_app() {
    app("asgi", python(&["asyncio"])).check();
}

#[test]
fn python_serves_fastapi() {
    App { exceptions: Exceptions::Passed, ..app("fastapi", python(&["fastapi"])) }.check();
}

#[test]
fn python_serves_starlette() {
    App { exceptions: Exceptions::Passed, ..app("starlette", python(&["starlette"])) }.check();
}
