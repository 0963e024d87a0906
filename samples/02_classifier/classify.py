"""Classify in the Python API.

Run: python samples/02_classifier/classify.py build/classifier/bundle
"""

import sys

from eecompile.runtime import Bundle

bundle = Bundle.open(sys.argv[1])
classifier = bundle.classifier("confident")
texts = ["Please call Anna Kowalski on 555-0142.", "The meeting is on Monday."]
for text, found in zip(texts, classifier.classify(texts, batch=32), strict=True):
    print(text)
    for token in found.tokens or []:
        print(f"  {token.text:12} {token.label:16} {max(token.scores):.3f} after {token.exit_layer} layers")
