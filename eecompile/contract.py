"""Every name and limit that more than one stage, or the C++ runtime, must agree on.

Shapes use these symbols: B slots in a pass, R rows (tokens) of a slot in a pass, N rows flattened, D hidden size,
KV key/value heads, d head size, T cache length, E length of a padded source, S context length, V vocabulary size.
"""

from collections.abc import Mapping
from typing import Final, Literal

# -- bundle ----------------------------------------------------------------------------------------------------
FORMAT: Final = "eecompile-bundle"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
POLICY: Final = "overlays/policy.json"
REPORT: Final = "report.html"
SIGNATURE_SUFFIX: Final = ".sig"
DEVICE_PREFIX: Final = "device_"  # of the files of a device's graphs, which lie beside the weights that they share
DEVICE_PLAN: Final = "segments/device_plan.json"
EARLY_EXIT: Final = "early_exit.json"
EARLY_EXIT_WEIGHTS: Final = "early_exit.safetensors"
RUNTIME: Final = "runtime"  # the C++ runtime's sources
CHAT: Final = "tokenizer/chat.json"  # the chat template as a table
CHAT_ROLES: Final = ("system", "user", "assistant")
CHAT_START: Final = "start"  # what the table calls a conversation's beginning
CHAT_END: Final = "end"  # where the assistant's turn begins

# -- graph inputs and outputs ----------------------------------------------------------------------------------
TOKEN_IDS: Final = "token_ids"  # int64 [B, R]
HIDDEN: Final = "hidden"  # float32 [B, R, D] in embed and segments, [N, D] in exits and the head
HIDDEN_OUT: Final = "hidden_out"  # as `hidden`; after the last segment it is normalised and ready for the head
POSITIONS: Final = "positions"  # int64 [B, R]: position of each row in its sequence
WRITE_INDEX: Final = "write_index"  # int64 [B]: cache index of each slot's first row
KEY_POSITIONS: Final = "key_positions"  # int64 [B, 1, T, 1]: position of each row of the caches, kept as they are kept
SOURCE_LENGTH: Final = "source_length"  # int64 [B]: tokens of each slot's source, without padding
EXIT_HIDDEN: Final = "exit_hidden"  # float32 [N, D]: an exit's normalised hidden state, ready for the head
GATE_W1: Final = "gate_w1"  # float32 [D, U]
GATE_B1: Final = "gate_b1"  # float32 [U]
GATE_W2: Final = "gate_w2"  # float32 [U, 1]
GATE_B2: Final = "gate_b2"  # float32 [1]
CONFIDENCE: Final = "confidence"  # float32 [N]: the learned gate's probability that this exit agrees
PREVIOUS: Final = "previous"  # float32 [N, D]: the rows at the exit before, zeros where there are none
SATURATION: Final = "saturation"  # float32 [N]: cosine of a row with the one at the exit before
ROUTER: Final = "router"  # a router's weights are router_w1 [D, U], router_b1 [U], router_w2 [U or D, C], router_b2 [C]
CHOICES: Final = "choices"  # float32 [N, C]: a router's logits: stop here, at the exits after it, at full depth
PREDICTOR: Final = "predictor"  # predictor_w1 [3 K, U], predictor_b1 [U], predictor_w2 [U, 1], predictor_b2 [1]
CANDIDATES: Final = "candidates"  # int64 [N, K]: places in the small head's logits; negative: choose them here
LAST_LOCAL: Final = "last_local"  # float32 [N, K]: the candidates' probabilities at the exit before, zeros at first
CANDIDATES_OUT: Final = "candidates_out"  # int64 [N, K]
CANDIDATE_TOKENS: Final = "candidate_tokens"  # int64 [N, K]
LOCAL: Final = "local"  # float32 [N, K]: probabilities among the candidates
PREDICTION: Final = "prediction"  # float32 [N]: the predictor's probability that the token is a candidate
THRESHOLDS: Final = "thresholds"  # float32 [N, 3]: max_prob above, margin above, entropy below
TOKEN: Final = "token"  # int64 [N]
MAX_PROB: Final = "max_prob"  # float32 [N]
MARGIN: Final = "margin"  # float32 [N]: first minus second probability
ENTROPY: Final = "entropy"  # float32 [N], nats
EXIT_FLAG: Final = "exit_flag"  # bool [N]
LOGITS: Final = "logits"  # float32 [N, V]; of a shortlist head [N, its tokens]; of a classifier [N, its labels]
# of an encoder, whose rows of all texts in a pass stand one after the other: N active rows, M frozen ones (they have
# exited and only give keys and values), B texts of at most T tokens, R of them active
TOKEN_TYPES: Final = "token_types"  # int64 [N]
FROZEN: Final = "frozen"  # float32 [M, D]
QUERY_ROWS: Final = "query_rows"  # int64 [B, R]: active row of each query; 0 where there is none
ROW_PLACES: Final = "row_places"  # int64 [N]: b * R + r of the query that an active row is
KEY_ROWS: Final = "key_rows"  # int64 [B, T]: active row, or N + frozen row, of each token; 0 where there is none
KEY_MASK: Final = "key_mask"  # bool [B, T]: whether there is one


LENGTH: Final = "T"  # the symbol of a cache's length


def cache_name(kind: str, layer: int) -> str:
    """Name of a segment's cache input, [B, KV, T, d] in the bundle's cache type; kind is "key" or "value"."""
    return f"{kind}_cache_{layer}"


def scale_name(kind: str, layer: int) -> str:
    """Name of the scales beside an int8 cache, float32 [B, KV, T, 1]."""
    return f"{kind}_scale_{layer}"


def updated(name: str) -> str:
    """Name of the output that is bound to the same address as the cache input `name`."""
    return f"{name}_out"


def cache_out_name(kind: str, layer: int) -> str:
    """Name of the cache output that is bound to the same address as `cache_name`."""
    return updated(cache_name(kind, layer))


LORA: Final = "lora_"


def low_rank_name(part: str, layer: int, projection: str) -> str:
    """Name of a LoRA input of a segment that repeats: part "a" is float32 [in, rank], "b" [rank, out], above a rank
    of 16 with zeros up to a multiple of it and "a" [rank / 16, in, 16]; `layer` counts the graph's layers, `projection`
    is q, k, v, o, gate, up or down."""
    return f"{LORA}{part}_{layer}_{projection}"


def cross_name(kind: str, layer: int) -> str:
    """Name of what the encoder gives decoder layer `layer`, float32 [B, H, E, d], E tokens of the padded source: an
    output of the encoder and an input of the segment with that layer; kind is "key" or "value"."""
    return f"cross_{kind}_{layer}"


# -- the exit decision: a model-local function, a TensorRT plugin and a host rule of one name -------------------
DECISION_DOMAIN: Final = "eecompile"
DECISION_OP: Final = "ExitDecision"
DECISION_VERSION: Final = "1"
NO_BOUND: Final = (-1.0, -1.0, float("inf"))  # thresholds that every finite row passes
NEVER: Final = (2.0, 2.0, -1.0)  # thresholds that no row passes

# -- modes, rules, criteria, precisions ------------------------------------------------------------------------
MODES: Final[tuple[str, ...]] = ("full", "confident", "exact")
KV_RULES: Final[tuple[str, ...]] = ("catch_up", "propagate", "selected")  # of a language model
# of these, rules by which a token that leaves changes what later ones see
APPROXIMATE: Final[tuple[Literal["propagate", "selected"], ...]] = ("propagate", "selected")
CACHES: Final = ("fp32", "fp16", "int8")  # what keys and values are kept in
COMPUTE: Final = ("float32", "float16", "bfloat16")  # what products and attention in engines are of
CAUSAL_LM: Final = "causal-lm"
TOKENS: Final = "token-classification"
CLASSIFY_MODES: Final = ("full", "confident")
# what leaves a batch, and what becomes of the keys and values of deeper layers: nobody reads those of a text that left
# as a whole; those of a token that left alone are projected from the hidden state it left with
GRANULARITIES: Final[Mapping[str, Literal["none", "propagate"]]] = {"sentence": "none", "token": "propagate"}
CHEAP_CRITERIA: Final = ("learned", "saturation", "router", "predictor")  # asked before any head runs
HEAD_CRITERIA: Final = ("max_prob", "margin", "entropy")  # columns of `thresholds`
CRITERIA: Final = (*CHEAP_CRITERIA, *HEAD_CRITERIA, "patience", "fixed", "never")  # of a language model
LABEL_CRITERIA: Final = (*HEAD_CRITERIA, "fixed", "never")  # of a classifier
VALUE_CRITERIA: Final = ("delta", "fixed", "never")  # of a regression
FULL_HEAD: Final = "full"  # the model's own head; the small ones have names
HEADS: Final = (FULL_HEAD, "low_rank", "shortlist")
LOW_RANK: Final = 64  # unless asked for otherwise
SHORTLIST: Final = 2048  # tokens, unless asked for otherwise
SCHEDULES: Final = ("none", "decay", "adaptive")
CANDIDATE_COUNT: Final = 4  # K, tokens that a predictor looks at
COSINE_SLACK: Final = 1e-5  # a cosine may come out this much above one
PRECISIONS: Final = ("fp32", "fp16", "int8", "w8a8", "fp8", "int4")  # from fine to coarse
QUANTISED: Final = ("int8", "int4")  # weights in blocks that share a scale
SCALED: Final = ("w8a8", "fp8")  # weights with a scale an output, rows with a scale a product; the head in float16
ROUNDED: Final = (*QUANTISED, *SCALED)  # products that round their rows too
BLOCK: Final = 32  # weights that share one scale, along the input dimension
CACHE_BUCKET: Final = 16  # cache lengths are multiples of this, the widest vector that processors have
PREFILL_ROWS: Final = 128  # rows of a prefill pass
PENDING_CAP: Final = 8  # tokens that may wait before a deeper segment
SLACK: Final = 64  # positions past the context: padding rows may have them

# -- back ends --------------------------------------------------------------------------------------------------
BACKENDS: Final = ("onnxruntime", "tensorrt", "cuda")  # cuda: ONNX Runtime on a GPU
DECISIONS: Final = ("auto", "pinned", "conditional")  # who decides at exits: the host by a pinned flag, or the GPU

# -- what a reader accepts -------------------------------------------------------------------------------------
MAX_LAYERS: Final = 1024
MAX_EXITS: Final = 64
MAX_LOOPS: Final = 256
MAX_RANK: Final = 4096
MAX_HEADS_OF_EXITS: Final = 16
MAX_SHORTLIST: Final = 1 << 16
MAX_REPEATS: Final = 64
MAX_HIDDEN: Final = 1 << 16
MAX_HEADS: Final = 1024
MAX_VOCAB: Final = 1 << 22
MAX_LABELS: Final = 4096
MAX_CONTEXT: Final = 1 << 22
MAX_FILES: Final = 4096
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_OVERLAY_BYTES: Final = 64 << 20
MAX_GRAPH_BYTES: Final = 256 << 20
MAX_FILE_BYTES: Final = 1 << 40
MAX_CHAT_TEXT: Final = 10_000  # characters of what a chat template looks for in messages
MAX_CHAT_SPECIAL: Final = 64
