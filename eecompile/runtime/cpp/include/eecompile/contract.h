// Generated from eecompile/contract.py by tools/contract_header.py: change it there, and write this again.
//
// Shapes use the symbols of contract.py. Thread safety: constants.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>

namespace eecompile::contract {

constexpr std::string_view kFormat = "eecompile-bundle";
constexpr std::int64_t kFormatVersion = 1;
constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kPolicy = "overlays/policy.json";
constexpr std::string_view kReport = "report.html";
constexpr std::string_view kSignatureSuffix = ".sig";
// of the files of a device's graphs, which lie beside the weights that they share
constexpr std::string_view kDevicePrefix = "device_";
constexpr std::string_view kDevicePlan = "segments/device_plan.json";
constexpr std::string_view kEarlyExit = "early_exit.json";
constexpr std::string_view kEarlyExitWeights = "early_exit.safetensors";
constexpr std::string_view kRuntime = "runtime";  // the C++ runtime's sources
constexpr std::string_view kChat = "tokenizer/chat.json";  // the chat template as a table
constexpr std::array<std::string_view, 3> kChatRoles = {"system", "user", "assistant"};
constexpr std::string_view kChatStart = "start";  // what the table calls a conversation's beginning
constexpr std::string_view kChatEnd = "end";  // where the assistant's turn begins

constexpr std::string_view kTokenIds = "token_ids";  // int64 [B, R]
constexpr std::string_view kHidden = "hidden";  // float32 [B, R, D] in embed and segments, [N, D] in exits and the head
// as `hidden`; after the last segment it is normalised and ready for the head
constexpr std::string_view kHiddenOut = "hidden_out";
constexpr std::string_view kPositions = "positions";  // int64 [B, R]: position of each row in its sequence
constexpr std::string_view kWriteIndex = "write_index";  // int64 [B]: cache index of each slot's first row
// int64 [B, 1, T, 1]: position of each row of the caches, kept as they are kept
constexpr std::string_view kKeyPositions = "key_positions";
constexpr std::string_view kSourceLength = "source_length";  // int64 [B]: tokens of each slot's source, without padding
// float32 [N, D]: an exit's normalised hidden state, ready for the head
constexpr std::string_view kExitHidden = "exit_hidden";
constexpr std::string_view kGateW1 = "gate_w1";  // float32 [D, U]
constexpr std::string_view kGateB1 = "gate_b1";  // float32 [U]
constexpr std::string_view kGateW2 = "gate_w2";  // float32 [U, 1]
constexpr std::string_view kGateB2 = "gate_b2";  // float32 [1]
// float32 [N]: the learned gate's probability that this exit agrees
constexpr std::string_view kConfidence = "confidence";
// float32 [N, D]: the rows at the exit before, zeros where there are none
constexpr std::string_view kPrevious = "previous";
constexpr std::string_view kSaturation = "saturation";  // float32 [N]: cosine of a row with the one at the exit before
// a router's weights are router_w1 [D, U], router_b1 [U], router_w2 [U or D, C], router_b2 [C]
constexpr std::string_view kRouter = "router";
// float32 [N, C]: a router's logits: stop here, at the exits after it, at full depth
constexpr std::string_view kChoices = "choices";
// predictor_w1 [3 K, U], predictor_b1 [U], predictor_w2 [U, 1], predictor_b2 [1]
constexpr std::string_view kPredictor = "predictor";
// int64 [N, K]: places in the small head's logits; negative: choose them here
constexpr std::string_view kCandidates = "candidates";
// float32 [N, K]: the candidates' probabilities at the exit before, zeros at first
constexpr std::string_view kLastLocal = "last_local";
constexpr std::string_view kCandidatesOut = "candidates_out";  // int64 [N, K]
constexpr std::string_view kCandidateTokens = "candidate_tokens";  // int64 [N, K]
constexpr std::string_view kLocal = "local";  // float32 [N, K]: probabilities among the candidates
// float32 [N]: the predictor's probability that the token is a candidate
constexpr std::string_view kPrediction = "prediction";
constexpr std::string_view kThresholds = "thresholds";  // float32 [N, 3]: max_prob above, margin above, entropy below
constexpr std::string_view kToken = "token";  // int64 [N]
constexpr std::string_view kMaxProb = "max_prob";  // float32 [N]
constexpr std::string_view kMargin = "margin";  // float32 [N]: first minus second probability
constexpr std::string_view kEntropy = "entropy";  // float32 [N], nats
constexpr std::string_view kExitFlag = "exit_flag";  // bool [N]
// float32 [N, V]; of a shortlist head [N, its tokens]; of a classifier [N, its labels]
constexpr std::string_view kLogits = "logits";
constexpr std::string_view kTokenTypes = "token_types";  // int64 [N]
constexpr std::string_view kFrozen = "frozen";  // float32 [M, D]
constexpr std::string_view kQueryRows = "query_rows";  // int64 [B, R]: active row of each query; 0 where there is none
constexpr std::string_view kRowPlaces = "row_places";  // int64 [N]: b * R + r of the query that an active row is
// int64 [B, T]: active row, or N + frozen row, of each token; 0 where there is none
constexpr std::string_view kKeyRows = "key_rows";
constexpr std::string_view kKeyMask = "key_mask";  // bool [B, T]: whether there is one
constexpr std::string_view kLength = "T";  // the symbol of a cache's length
constexpr std::string_view kLora = "lora_";

constexpr std::string_view kDecisionDomain = "eecompile";
constexpr std::string_view kDecisionOp = "ExitDecision";
constexpr std::string_view kDecisionVersion = "1";
// thresholds that every finite row passes
constexpr std::array<float, 3> kNoBound = {-1.0f, -1.0f, std::numeric_limits<float>::infinity()};
constexpr std::array<float, 3> kNever = {2.0f, 2.0f, -1.0f};  // thresholds that no row passes

constexpr std::array<std::string_view, 3> kModes = {"full", "confident", "exact"};
constexpr std::array<std::string_view, 3> kKvRules = {"catch_up", "propagate", "selected"};  // of a language model
constexpr std::array<std::string_view, 2> kApproximate = {"propagate", "selected"};
constexpr std::array<std::string_view, 3> kCaches = {"fp32", "fp16", "int8"};  // what keys and values are kept in
// what products and attention in engines are of
constexpr std::array<std::string_view, 3> kCompute = {"float32", "float16", "bfloat16"};
constexpr std::string_view kCausalLm = "causal-lm";
constexpr std::string_view kTokens = "token-classification";
constexpr std::array<std::string_view, 2> kClassifyModes = {"full", "confident"};
// asked before any head runs
constexpr std::array<std::string_view, 4> kCheapCriteria = {"learned", "saturation", "router", "predictor"};
constexpr std::array<std::string_view, 3> kHeadCriteria = {"max_prob", "margin", "entropy"};  // columns of `thresholds`
// of a language model
constexpr std::array<std::string_view, 10> kCriteria = {"learned", "saturation", "router", "predictor", "max_prob", "margin", "entropy", "patience", "fixed", "never"};
// of a classifier
constexpr std::array<std::string_view, 5> kLabelCriteria = {"max_prob", "margin", "entropy", "fixed", "never"};
constexpr std::array<std::string_view, 3> kValueCriteria = {"delta", "fixed", "never"};  // of a regression
constexpr std::string_view kFullHead = "full";  // the model's own head; the small ones have names
constexpr std::array<std::string_view, 3> kHeads = {"full", "low_rank", "shortlist"};
constexpr std::int64_t kLowRank = 64;  // unless asked for otherwise
constexpr std::int64_t kShortlist = 2048;  // tokens, unless asked for otherwise
constexpr std::array<std::string_view, 3> kSchedules = {"none", "decay", "adaptive"};
constexpr std::int64_t kCandidateCount = 4;  // K, tokens that a predictor looks at
constexpr float kCosineSlack = 1e-05f;  // a cosine may come out this much above one
// from fine to coarse
constexpr std::array<std::string_view, 6> kPrecisions = {"fp32", "fp16", "int8", "w8a8", "fp8", "int4"};
constexpr std::array<std::string_view, 2> kQuantised = {"int8", "int4"};  // weights in blocks that share a scale
// weights with a scale an output, rows with a scale a product; the head in float16
constexpr std::array<std::string_view, 2> kScaled = {"w8a8", "fp8"};
// products that round their rows too
constexpr std::array<std::string_view, 4> kRounded = {"int8", "int4", "w8a8", "fp8"};
constexpr std::int64_t kBlock = 32;  // weights that share one scale, along the input dimension
// cache lengths are multiples of this, the widest vector that processors have
constexpr std::int64_t kCacheBucket = 16;
constexpr std::int64_t kPrefillRows = 128;  // rows of a prefill pass
constexpr std::int64_t kPendingCap = 8;  // tokens that may wait before a deeper segment
constexpr std::int64_t kSlack = 64;  // positions past the context: padding rows may have them

// cuda: ONNX Runtime on a GPU
constexpr std::array<std::string_view, 3> kBackends = {"onnxruntime", "tensorrt", "cuda"};
// who decides at exits: the host by a pinned flag, or the GPU
constexpr std::array<std::string_view, 3> kDecisions = {"auto", "pinned", "conditional"};

constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxExits = 64;
constexpr std::int64_t kMaxLoops = 256;
constexpr std::int64_t kMaxRank = 4096;
constexpr std::int64_t kMaxHeadsOfExits = 16;
constexpr std::int64_t kMaxShortlist = 65536;
constexpr std::int64_t kMaxRepeats = 64;
constexpr std::int64_t kMaxHidden = 65536;
constexpr std::int64_t kMaxHeads = 1024;
constexpr std::int64_t kMaxVocab = 4194304;
constexpr std::int64_t kMaxLabels = 4096;
constexpr std::int64_t kMaxContext = 4194304;
constexpr std::int64_t kMaxFiles = 4096;
constexpr std::int64_t kMaxManifestBytes = 16777216;
constexpr std::int64_t kMaxOverlayBytes = 67108864;
constexpr std::int64_t kMaxGraphBytes = 268435456;
constexpr std::int64_t kMaxFileBytes = 1099511627776;
constexpr std::int64_t kMaxChatText = 10000;  // characters of what a chat template looks for in messages
constexpr std::int64_t kMaxChatSpecial = 64;

}  // namespace eecompile::contract
