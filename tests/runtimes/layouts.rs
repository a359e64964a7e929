//! Python projects as people lay them out: packages, targets, factories, Django's `manage.py`.

use super::fixture::{Fixture, python};
use super::support::Server;

const PLAIN: &str = "
import os
def app(environ, start_response):
    start_response('200 OK', [])
    return [('%s in %s' % (__name__, os.path.basename(os.getcwd()))).encode()]
";

/// A project of these files, served with `arguments` (a path inside it first).
fn serve(files: &[(&str, &str)], path: &str, arguments: &[&str]) -> Option<(Fixture, Server)> {
    let fixture = Fixture::empty(&python(&["sys"]), "project")?;
    for (name, text) in files {
        let folder = fixture.file(name).parent().map(std::path::Path::to_path_buf);
        std::fs::create_dir_all(folder.expect("a folder")).expect("made");
        fixture.write(name, text);
    }
    let server = fixture.server((!path.is_empty()).then_some(path)).args(["w:1"]).args(arguments);
    let server = server.env("NODE_ENV", "production").start();
    Some((fixture, server))
}

fn says(files: &[(&str, &str)], path: &str, arguments: &[&str], words: &str) {
    let Some((_fixture, mut server)) = serve(files, path, arguments) else { return };
    server.wait_for_workers(1);
    let response = server.get("/");
    assert_eq!((response.status, response.text().as_str()), (200, words), "{}", server.stderr_text());
}

fn complains(files: &[(&str, &str)], arguments: &[&str], complaint: &str) {
    let Some((fixture, mut server)) = serve(files, "", arguments) else { return };
    let complaint = complaint.replace("<dir>", fixture.file("").to_string_lossy().trim_end_matches('/'));
    let is_it = |server: &mut Server| server.stderr_lines().iter().any(|line| line.ends_with(&complaint));
    server.wait_until(&complaint, is_it);
    assert!(!server.stderr_text().contains("Traceback"), "one line will do: {}", server.stderr_text());
}

#[test]
fn an_entry_inside_a_package_is_imported_by_its_full_name_from_the_projects_root() {
    let main = format!("from .sibling import word\nfrom shop import sibling\n{PLAIN}");
    let files =
        [("shop/__init__.py", ""), ("shop/sibling.py", "word = 1\n"), ("shop/main.py", main.as_str())];
    says(&files, "shop", &[], "shop.main in project");
    says(&files, "shop/main.py", &[], "shop.main in project");
    says(&files, "", &["shop.main:app"], "shop.main in project");
}

#[test]
fn a_main_py_and_an_app_main_py_are_entries() {
    says(&[("main.py", PLAIN)], "", &[], "main in project");
    says(&[("app/__init__.py", ""), ("app/main.py", PLAIN)], "", &[], "app.main in project");
}

#[test]
fn a_factory_in_a_package_is_called_once() {
    let factory =
        format!("def create_app(config=None):\n{}\n    return app\n", PLAIN.replace('\n', "\n    "));
    says(&[("shop/__init__.py", &factory)], "", &["shop:create_app()"], "shop in project");
    says(&[("src/shop/__init__.py", &factory)], "", &["shop:create_app()"], "shop in project");
}

#[test]
fn a_target_that_leads_to_no_app_is_told_in_one_line_that_says_what_to_write() {
    let app = format!("{PLAIN}\ndef create_app(): return app\ndef needs(config): return app\nnumber = 7\n");
    for (target, complaint) in [
        ("shop:ap", "'shop' has no 'ap'; rip-server <dir> shop:app would do"),
        (
            "shop:create_app",
            "'shop:create_app' takes no arguments, as a factory; rip-server <dir> 'shop:create_app()' would do",
        ),
        ("shop:creat_app()", "'shop' has no 'creat_app'; rip-server <dir> 'shop:create_app()' would do"),
        (
            "shop:needs()",
            "'shop:needs()' needs arguments (config); a function without any that calls it would do",
        ),
        ("shop:number", "'shop:number' is no WSGI or ASGI app, but of type int"),
        ("nowhere:app", "there is no module 'nowhere' in '<dir>', and none is installed"),
    ] {
        complains(&[("shop.py", &app)], &[target], complaint);
    }
    let hidden = "def create_app(): pass\n";
    complains(&[("app.py", hidden)], &[], "; rip-server <dir> 'app:create_app()' would do");
}

/// What `django-admin startproject` writes, as far as it matters here.
#[test]
fn a_django_project_is_served_by_its_manage_py() {
    if Fixture::empty(&python(&["django"]), "project").is_none() {
        return;
    }
    let manage = "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n";
    let settings = "
DEBUG = True
SECRET_KEY = 'x'
ALLOWED_HOSTS = ['*']
ROOT_URLCONF = 'mysite.urls'
WSGI_APPLICATION = 'mysite.wsgi.application'
INSTALLED_APPS = ['django.contrib.staticfiles']
STATIC_URL = '/static/'
STATICFILES_DIRS = ['assets']
";
    let wsgi = "
import os
from django.core.wsgi import get_wsgi_application
os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')
application = get_wsgi_application()
";
    let urls = "
from django.http import HttpResponse
from django.urls import path
from . import views
urlpatterns = [path('', views.index)]
";
    let views = "from django.http import HttpResponse\ndef index(request): return HttpResponse(__name__)\n";
    let files = [
        ("manage.py", manage),
        ("mysite/__init__.py", ""),
        ("mysite/settings.py", settings),
        ("mysite/wsgi.py", wsgi),
        ("mysite/urls.py", urls),
        ("mysite/views.py", views),
        ("assets/site.css", "p {}"),
    ];
    says(&files, "", &[], "mysite.views");
    let Some((_fixture, mut server)) = serve(&files, "", &[]) else { return };
    server.wait_for_workers(1);
    assert_eq!(server.get("/static/site.css").text(), "p {}", "as its own server does in debug mode");
}
