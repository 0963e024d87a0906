"""Generate from a bundle in the Python API.

Run: python samples/01_quickstart/generate.py build/demo/bundle
"""

import sys

from eecompile.runtime import Bundle

bundle = Bundle.open(sys.argv[1])
for mode in ("full", "exact"):
    session = bundle.session(mode=mode)
    answer = session.chat([{"role": "user", "content": "Name three uses of a paper clip."}], max_new_tokens=48)
    for token in answer:
        print(token.text, end="", flush=True)
    stats = answer.stats
    print(f"\n[{mode}: {stats.tokens_per_second:.1f} tokens/s, mean depth {stats.mean_depth:.1f}]\n")
