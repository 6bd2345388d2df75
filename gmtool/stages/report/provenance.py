"""Where artifacts come from, as a graph: from images to scores, followed from record to record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.outputs import kind_of
from gmtool.artifacts.samples import METRICS
from gmtool.errors import GmtoolError
from gmtool.evaluation.metrics import label, metrics_by_name
from gmtool.evaluation.report import Report
from gmtool.stages.inspect.run import decoder_fingerprints, open_manifest, weight_fingerprints
from gmtool.stages.report.collection import Artifact, Collection
from gmtool.stages.report.commands import command_of, evaluation_of, shown_path

PLACES: Mapping[str, int] = {
    "images": 0,
    "latents": 1,
    "decoder": 1,
    "gmm": 2,
    "reconstruction": 2,
    "run": 3,
    "samples": 4,
    "sweep": 4,
    "likelihood": 4,
    "scores": 5,
}
"""The columns of kinds of nodes; what is of another kind, such as imported weights, stands where images do."""

SAME_AS: Mapping[str, str] = {"guide": "run", "teacher": "run"}
"""Roles that are artifacts of a kind by another name."""

MODELS = ("encoder", "decoder")
"""Roles of networks that may be of the hub, under whose id they are recorded."""

KNOWN_BY: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "run": weight_fingerprints,
    "decoder": decoder_fingerprints,
}
"""Kinds that go on changing, and the fingerprints that what was made from one may know it by; others have their own."""


@dataclass(frozen=True)
class Node:
    """A thing of the graph: what it is, and how it was made.

    key: its own among all. note: what else there is to say, such as that it is no longer there. command: "" where it is
    not known. given: whether the report is about it.
    """

    key: str
    kind: str
    name: str
    path: str
    fingerprint: str
    command: str = ""
    note: str = ""
    given: bool = True

    @property
    def column(self) -> int:
        """Its place from left to right."""
        return PLACES.get(self.kind, 0)


@dataclass
class Graph:
    """nodes: by key. edges: (from, to) keys; those that others imply are not among them."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)

    def parents(self, key: str) -> list[str]:
        """Keys of what a node was made from, in the order of the nodes."""
        return [parent for parent in self.nodes if (parent, key) in self.edges]

    def children(self, key: str) -> list[str]:
        """Keys of what was made from a node, in the order of the nodes."""
        return [child for child in self.nodes if (key, child) in self.edges]

    def reduced(self) -> Graph:
        """The transitive reduction: the graph without edges that a longer path implies."""
        longer = {(one, other) for one, other in self.edges if self._leads_round(one, other)}
        return Graph(self.nodes, self.edges - longer)

    def _leads_round(self, start: str, end: str) -> bool:
        waiting, seen = [child for child in self.children(start) if child != end], set()
        while waiting:
            key = waiting.pop()
            if key == end:
                return True
            if key not in seen:
                seen.add(key)
                waiting += self.children(key)
        return False


def trace(collection: Collection) -> Graph:
    """The graph of the artifacts, of what they were made from as far as records tell, and of samples' scores."""
    return _Tracer(collection).graph.reduced()


class _Tracer:
    """Builds the graph: artifacts first, then the inputs that are none of them."""

    def __init__(self, collection: Collection) -> None:
        self.graph = Graph()
        self._artifacts = list(collection.artifacts)
        self._weights: dict[tuple[str, str], bool] = {}
        self._given = set(collection.artifacts)
        for artifact in collection.artifacts:
            self._add(artifact)
        for artifact in collection.of("samples"):
            self._add_scores(artifact)

    def _add(self, artifact: Artifact) -> None:
        if _key(artifact) in self.graph.nodes:
            return
        sources = [(used, self._source(used, artifact.path.parent)) for used in artifact.manifest.inputs]
        inputs: dict[str, list[str]] = {}
        for used, node in sources:
            inputs.setdefault(used.role, []).append(shown_path(Path(node.path)))
        self.graph.nodes[_key(artifact)] = Node(
            _key(artifact),
            artifact.kind,
            artifact.name,
            str(artifact.path),
            artifact.manifest.fingerprint,
            command_of(artifact.manifest, shown_path(artifact.path), inputs),
            given=artifact in self._given,
        )
        self.graph.edges |= {(node.key, _key(artifact)) for _, node in sources}

    def _add_scores(self, artifact: Artifact) -> None:
        if artifact.scores is None:
            return
        report, key = artifact.scores, f"scores {artifact.path}"
        images = f"{report.reference_kind} {report.reference} ({report.reference_fingerprint[:8]})"
        note = f"by {report.extractor}, against {images}"
        command = evaluation_of(report, shown_path(artifact.path))
        path = artifact.path / METRICS
        self.graph.nodes[key] = Node(key, "scores", _headline(report), str(path), file_fingerprint(path), command, note)
        self.graph.edges.add((_key(artifact), key))

    def _source(self, used: Input, folder: Path) -> Node:
        """The node of an input, made if need be."""
        known = self._known(used) or self._there(used, folder)
        if known is not None:
            self._add(known)
            return self.graph.nodes[_key(known)]
        key = f"{used.role} {used.fingerprint}"
        if key not in self.graph.nodes:
            kind = SAME_AS.get(used.role, used.role)
            note = "" if used.role == "images" else self._why(used, folder)
            self.graph.nodes[key] = Node(
                key, kind, Path(used.path).name or used.path, used.path, used.fingerprint, note=note, given=False
            )
        return self.graph.nodes[key]

    def _known(self, used: Input) -> Artifact | None:
        """The artifact that an input is, among those that are shown: the one in its place before others."""
        kind = SAME_AS.get(used.role, used.role)
        same = [artifact for artifact in self._artifacts if artifact.kind == kind]
        same.sort(key=lambda artifact: artifact.path != Path(used.path).resolve())
        return next((artifact for artifact in same if self._is(artifact, used)), None)

    def _is(self, artifact: Artifact, used: Input) -> bool:
        if artifact.kind not in KNOWN_BY:
            return artifact.manifest.fingerprint == used.fingerprint
        key = (str(artifact.path), used.fingerprint)
        if key not in self._weights:
            self._weights[key] = used.fingerprint in KNOWN_BY[artifact.kind](artifact.path)
        return self._weights[key]

    def _there(self, used: Input, folder: Path) -> Artifact | None:
        """The artifact that still lies where an input was read, and is what it was."""
        for path in _places(used, folder):
            if kind_of(path) != SAME_AS.get(used.role, used.role):
                continue
            try:
                artifact = Artifact(path, path.name, open_manifest(path))
                if self._is(artifact, used):
                    self._artifacts.append(artifact)
                    return artifact
            except GmtoolError:
                continue
        return None

    def _why(self, used: Input, folder: Path) -> str:
        """Why an input could not be opened; "" for a model of the hub, which need not be on this machine."""
        if used.role in MODELS and not Path(used.path).is_absolute():
            return ""
        if any(path.exists() for path in _places(used, folder)):
            return "" if SAME_AS.get(used.role, used.role) not in PLACES else "changed since"
        return "no longer there"


def kind_words(kind: str) -> str:
    """The name of a kind of node on the page."""
    return "mixture" if kind == "gmm" else kind


def _headline(report: Report) -> str:
    """The first score: "Fréchet distance 0.81"."""
    for figure in report.figures:
        metric = metrics_by_name().get(figure.metric)
        if metric is not None:
            return f"{label(metric, report.features)} {figure.generated.value:.3g}"
    return METRICS


def _key(artifact: Artifact) -> str:
    return f"{artifact.kind} {artifact.path}"


def _places(used: Input, folder: Path) -> Iterator[Path]:
    """Where an input may lie: earlier versions recorded paths as they were typed."""
    yield Path(used.path).resolve()
    if not Path(used.path).is_absolute():
        yield (folder / used.path).resolve()
