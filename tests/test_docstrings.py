"""Every public function of the mathematics documents the shapes of its tensors and the source of what it computes."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import gmtool.evaluation.likelihood
import gmtool.evaluation.metrics
import gmtool.evaluation.trajectory
import gmtool.flow
import gmtool.mixture
import gmtool.reconstruction.augmentation
import gmtool.reconstruction.losses
import gmtool.reconstruction.perceptual
import gmtool.reconstruction.quality
import gmtool.training.ema
import gmtool.training.focal

MATHEMATICS = (
    gmtool.flow,
    gmtool.mixture,
    gmtool.evaluation.metrics,
    gmtool.evaluation.likelihood,
    gmtool.evaluation.trajectory,
    gmtool.reconstruction.augmentation,
    gmtool.reconstruction.losses,
    gmtool.reconstruction.perceptual,
    gmtool.reconstruction.quality,
    gmtool.training.ema,
    gmtool.training.focal,
)
"""Packages, whole, and modules whose functions compute what papers define."""

SHAPE = re.compile(r"\((?:[A-Z]\b|\d|\.\.\.|count|clusters|intervals|n\b)[^()]*\)|\bSee (?:`|the module)")
SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|\b(?:19|20)\d\d\b|GMFlow, (?:eq|section|appendix)|\bSource:|\bsource\.")
TENSORS = re.compile(r"\b(?:Tensor|ndarray)\b")


def modules() -> Iterator[ModuleType]:
    for part in MATHEMATICS:
        yield part
        for module in pkgutil.walk_packages(getattr(part, "__path__", ()), f"{part.__name__}."):
            yield importlib.import_module(module.name)


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
    return any(TENSORS.search(str(annotation)) for annotation in function.__annotations__.values())


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
