"""Finds the app that a target names (`pkg.mod`, `pkg.mod:attr`, `pkg.mod:factory()`), and loads it, and loads it anew."""

import difflib
import importlib
import importlib.util
import inspect
import os
import shlex
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location

NAMES = ("application", "app")
FOLDERS = []  # of the project, in sys.path
FACTORIES = ("create_app", "make_app", "get_app", "create_application")


class Mistake(LookupError):
    """The target leads to no app: one line that says what to write."""


class Target:
    def __init__(self, text, entry):
        self.text = text
        self.module_name, _, self.attribute = text.partition(":")
        self.root = os.getcwd()
        # Of a module that is installed somewhere the server knows no file.
        self.entry = None if os.path.isdir(entry) else entry
        if self.entry:
            parts = self.module_name.count(".") + (os.path.basename(entry) == "__init__.py")
            self.root = os.path.dirname(entry)
            for _ in range(parts):
                self.root = os.path.dirname(self.root)
        for folder in (os.getcwd(), self.root):
            if folder in sys.path:
                sys.path.remove(folder)
            sys.path.insert(0, folder)
            FOLDERS.append(folder)
        if self.entry and os.path.dirname(entry) not in sys.path:
            # Last, for apps that import what lies beside them by its bare name although it is in a package.
            sys.path.append(os.path.dirname(entry))
            FOLDERS.append(os.path.dirname(entry))
        if self.module_name in sys.modules:
            self.module_name = "rip_app"  # app.py is called as something that is loaded already

    def load(self):
        """Runs the entry as a new module and returns the app in it."""
        return with_static_files(self.app_in(self.import_module()))

    def import_module(self):
        name = self.module_name
        if self.entry is None:
            return self.import_installed(name)
        parent, _, last = name.rpartition(".")
        if parent:
            importlib.import_module(parent)
        # Read here, not by an import: a cached .pyc is told from a new source by whole seconds.
        with open(self.entry, "rb") as file:
            source = file.read()
        folders = [os.path.dirname(self.entry)] if os.path.basename(self.entry) == "__init__.py" else None
        loader = SourceFileLoader(name, self.entry)
        spec = spec_from_file_location(name, self.entry, loader=loader, submodule_search_locations=folders)
        module = module_from_spec(spec)
        previous = sys.modules.get(name)
        sys.modules[name] = module
        try:
            exec(compile(source, self.entry, "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            if previous is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = previous
            raise
        module = sys.modules.get(name, module)
        if parent:
            setattr(sys.modules[parent], last, module)
        return module

    def import_installed(self, name):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            raise Mistake("there is no module '%s' in '%s', and none is installed" % (name, os.getcwd()))
        module = importlib.import_module(name)
        self.entry = getattr(module, "__file__", None)
        return module

    def app_in(self, module):
        name, is_factory = self.attribute, False
        if name.endswith("()"):
            name, is_factory = name[:-2], True
        if not name:
            for name in NAMES:
                app = getattr(module, name, None)
                if callable(app):
                    return app
            raise Mistake("neither `application` nor `app` in '%s' is a WSGI or ASGI app%s" % self.hint(module))
        app = module
        for part in name.split("."):
            try:
                app = getattr(app, part)
            except AttributeError:
                near = difflib.get_close_matches(part, dir(app), 1)
                meant = name.replace(part, near[0]) if near else None
                if is_factory and meant:
                    meant += "()"
                raise Mistake(
                    "'%s' has no '%s'%s" % (self.module_name, name, self.would_do(meant) if meant else "")
                ) from None
        if not callable(app):
            raise Mistake("'%s' is no WSGI or ASGI app, but %s" % (self.text, a_kind_of(app)))
        if is_factory:
            return self.called(app, name)
        if not inspect.isclass(app) and takes_nothing(app):
            raise Mistake("'%s' takes no arguments, as a factory%s" % (self.text, self.would_do(name + "()")))
        return app

    def called(self, factory, name):
        needed = [parameter.name for parameter in parameters(factory) if is_required(parameter)]
        if needed:
            raise Mistake(
                "'%s' needs arguments (%s); a function without any that calls it would do"
                % (self.text, ", ".join(needed))
            )
        app = factory()
        if inspect.iscoroutine(app):
            app.close()
            raise Mistake("'%s' is a coroutine function; a plain function would do" % self.text)
        if not callable(app):
            raise Mistake("'%s' returned no WSGI or ASGI app, but %s" % (self.text, a_kind_of(app)))
        return app

    def hint(self, module):
        """The entry, and what could be written to have it served."""
        candidates = [name + "()" for name in FACTORIES if inspect.isfunction(getattr(module, name, None))]
        for name, value in vars(module).items():
            if not name.startswith("_") and callable(value) and not inspect.isclass(value):
                if hasattr(type(value), "__call__") and type(value).__module__.split(".")[0] not in ("builtins", "typing"):
                    candidates.append(name)
        if not candidates:
            return self.entry, "; app = ... would do"
        return self.entry, self.would_do(candidates[0])

    def would_do(self, attribute):
        words = ("rip-server", os.getcwd(), "%s:%s" % (self.text.partition(":")[0], attribute))
        return "; %s would do" % " ".join(map(shlex.quote, words))


def with_static_files(app):
    """In debug mode Django's own server adds its static files to the app, and so is done here."""
    if "django.contrib.staticfiles" not in sys.modules:
        return app
    from django.conf import settings

    if not (settings.configured and settings.DEBUG and settings.STATIC_URL):
        return app
    kinds = {kind.__name__ for kind in type(app).__mro__}
    if "WSGIHandler" in kinds:
        from django.contrib.staticfiles.handlers import StaticFilesHandler

        return StaticFilesHandler(app)
    if "ASGIHandler" in kinds or "ProtocolTypeRouter" in kinds:
        from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

        return ASGIStaticFilesHandler(app)
    return app


def looks_like_asgi(app):
    """A coroutine function, or one that takes ASGI's parameters and not WSGI's two."""
    call = getattr(app, "__call__", None)
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(call):
        return True
    return not accepts(app, 2) and (accepts(app, 3) or accepts(app, 1))


def accepts(app, count):
    try:
        inspect.signature(app).bind(*range(count))
        return True
    except ValueError:
        return count == 2  # written in C, without a signature: WSGI is the older custom
    except TypeError:
        return False


def parameters(function):
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()


def is_required(parameter):
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variable


def takes_nothing(app):
    return not any(accepts(app, count) for count in (1, 2, 3)) and accepts(app, 0)


def a_kind_of(value):
    return "a module" if inspect.ismodule(value) else "of type %s" % type(value).__name__
