"""Documents through a bundle, teacher-forced, whatever the model makes of a document."""

from eecompile.calibrate.documents import Document
from eecompile.errors import UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.source import sequence
from eecompile.runtime.trace import DocumentTrace, Tracer


class DocumentTracer:
    """Traces documents of at most `most` tokens. A document is what a decoder reads; of an encoder-decoder it is the
    source, and what is traced is its target: the one that it came with, or else what the full model makes of it,
    greedily and up to its end (what CALM calls textual consistency: Schuster et al., "Confident Adaptive Language
    Modeling", 2022, section 4).

    Not thread-safe. Memory: as Tracer's and, where targets are generated, one sequence's cache more.
    """

    def __init__(self, bundle: Bundle, most: int, *, exits: bool = True, boundaries: bool = False) -> None:
        self._manifest, self._most = bundle.manifest, min(most, bundle.manifest.model.context)
        self._tracer = Tracer(bundle, exits=exits, boundaries=boundaries)
        self._session = None if bundle.manifest.source is None else bundle.session(mode="full")

    def trace(self, document: Document) -> DocumentTrace:
        """Trace one document. Raises UsageError for a pair of source and target where the model knows no such thing."""
        if self._session is None:
            if document.target is not None:
                mend = 'give {"text": ...} a line, source and target in one'
                raise UsageError("the documents are pairs of source and target, the model is a decoder only", mend=mend)
            return self._tracer.trace(document.ids)
        target = document.target
        if target is None:
            target = [t.id for t in self._session.generate(document.ids, max_new_tokens=self._most)]
        ids, source = sequence(self._manifest, document.ids, target[: self._most][:-1])
        return self._tracer.trace(ids, source)
