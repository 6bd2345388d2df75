"""Every public function of the mathematics documents the shapes of its tensors and the source of what it computes."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import gmtool.flow
import gmtool.mixture

SHAPE = re.compile(r"\((?:[A-Z]\b|\d|\.\.\.|count|clusters|intervals|n\b)[^()]*\)|\bSee (?:`|the module)")
SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|\b(?:19|20)\d\d\b|GMFlow, (?:eq|section|appendix)|\bSource:|\bsource\.")
TENSORS = re.compile(r"\b(?:Tensor|ndarray)\b")


def modules() -> Iterator[ModuleType]:
    for package in (gmtool.flow, gmtool.mixture):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def functions(module: ModuleType) -> Iterator[tuple[str, Callable, str]]:
    """Public functions and methods that take or return tensors, with the docstrings that surround them."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value, ""
        elif inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and (method == "__call__" or not method.startswith("_")):
                    yield f"{name}.{method}", function, inspect.getdoc(value) or ""


def takes_tensors(function: Callable) -> bool:
    return any(TENSORS.search(str(each)) for each in function.__annotations__.values())


def test_shapes() -> None:
    missing = [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, function, around in functions(module)
        if takes_tensors(function) and not SHAPE.search(f"{inspect.getdoc(function)} {around}")
    ]
    assert not missing


def test_sources() -> None:
    missing = [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, function, around in functions(module)
        if takes_tensors(function)
        and not SOURCE.search(f"{inspect.getdoc(function)} {around} {inspect.getdoc(module)}")
    ]
    assert not missing
